//! Tests of finding and letting go of the program's pages.

use super::*;

/// As the kernel shows the program, what its loader relocated, its data, a shared file, memory of
/// no file, and a library that a debugger has changed.
const SMAPS: &str = "\
55d000000000-55d000100000 r--p 00000000 fe:00 42                         /bin/a program
Size:               1024 kB
Rss:                 512 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
55d000100000-55d000600000 r-xp 00100000 fe:00 42                         /bin/a program
Size:               5120 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
55d000600000-55d000680000 r--p 00600000 fe:00 42                         /bin/a program
Anonymous:           512 kB
VmFlags: rd mr mw me ac
55d000680000-55d000690000 rw-p 00680000 fe:00 42                         /bin/a program
Anonymous:             0 kB
7f0000000000-7f0000010000 r--s 00000000 00:2f 7                          /run/shared-file
Anonymous:             0 kB
7f0000020000-7f0000030000 r--p 00000000 00:00 0 
Anonymous:             0 kB
7f0000040000-7f0000050000 r-xp 00000000 fe:00 43                         /lib/libc.so.6
Anonymous:             4 kB
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
";

#[test]
fn only_what_is_the_files_and_nobodys_else_is_let_go() {
    let found: Vec<_> = paragraphs(SMAPS)
        .filter_map(|paragraph| Mapping::parse(&paragraph))
        .map(|mapping| (mapping.start.get(), mapping.len, mapping.inode))
        .collect();
    assert_eq!(
        found,
        [
            (0x55d0_0000_0000, 0x10_0000, 42),
            (0x55d0_0010_0000, 0x50_0000, 42),
        ]
    );
}

#[test]
fn what_cannot_be_read_is_left_alone() {
    for head in [
        "",
        "55d000000000 r--p 00000000 fe:00 42 /bin/program",
        "55d000000000-x r--p 00000000 fe:00 42 /bin/program",
        "55d000000000-55d000100000 r--p 00000000 fe:00",
        "55d000100000-55d000000000 r--p 00000000 fe:00 42 /bin/program",
    ] {
        let paragraph = [head, "Anonymous:             0 kB"];
        assert_eq!(Mapping::parse(&paragraph), None, "{head}");
    }
    let without_count = ["55d000000000-55d000100000 r--p 00000000 fe:00 42 /bin/program"];
    assert_eq!(Mapping::parse(&without_count), None);
}

#[test]
fn pages_go_and_come_back_with_what_they_held() {
    // Far more than the code that this test and the kernel's maps around it need.
    static TABLE: [u64; 1 << 16] = filled();
    let sum = || TABLE.iter().fold(0, |sum: u64, n| sum.wrapping_add(*n));
    let before = sum();
    let pages = ProgramPages::at_start().unwrap();

    let went = pages.let_go().unwrap();

    assert!(went > size_of_val(&TABLE) / 2, "{went} bytes");
    assert_eq!(sum(), before);
}

const fn filled() -> [u64; 1 << 16] {
    let mut table = [0; 1 << 16];
    let mut n = 0;
    while n < table.len() {
        table[n] = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        n += 1;
    }
    table
}
