//! What the daemons do at their limits: who is refused, who hears of it, and that the rest goes on.

mod admission;
mod memory;
