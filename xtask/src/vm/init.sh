#!/bin/busybox sh
# The first process of the guest: mounts, loads modules, runs the tests of /tests.list, and ends
# the machine. What `xtask/src/vm/results.rs` reads are the lines that start with "vm:" and those
# of the test programs; they have the second serial port for themselves.
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /busybox
/bin/busybox --install -s /busybox
export PATH=/sbin:/bin:/busybox HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
stty -F /dev/ttyS1 -onlcr 2>/dev/null
exec </dev/null >/dev/ttyS1 2>&1

echo "vm: kernel $(uname -r)"
for module in /modules/*; do
    insmod "$module" || echo "vm: problem: cannot load $module"
done
ip link set lo up || echo "vm: problem: cannot set up lo"

# As systemd has it; the kernel begins with 1024, which is little for both ends of everything.
ulimit -n 20000
export PROXYMUX_BIN_DIR=/daemons
while read -r program filter; do
    echo "vm: start $program $filter"
    "/tests/$program" --test-threads=2 --color=never "$filter"
    echo "vm: end $? after $(cut -d ' ' -f 1 /proc/uptime) s"
done </tests.list
echo "vm: done"

# What is still in the port's buffer would be lost.
sleep 1
reboot -f
