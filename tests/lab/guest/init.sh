#!/bin/busybox sh
# The guest's init: load modules, fill memory by the plan, say so on the serial line, wait to be dumped.
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /mnt /tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs -o size=100% shm /dev/shm
echo 4 > /proc/sys/kernel/printk

while read -r module; do insmod "/modules/$module" || echo "LAB-WARN insmod $module"; done < /modules/order

hugepages() { echo "$1" > /proc/sys/vm/nr_hugepages; }

pagecache() { # file data, directories and dentries from the disk of files
	mount -t ext4 -o ro /dev/vda /mnt || mount -t ext4 -o ro,noload /dev/vda /mnt
	find /mnt -type f -exec cat {} + > /dev/null
	ls -lR /mnt > /dev/null
}

merge() { # let KSM find the pages of 'fill ksm'
	echo 20000 > /sys/kernel/mm/ksm/pages_to_scan
	echo 10 > /sys/kernel/mm/ksm/sleep_millisecs
	echo 1 > /sys/kernel/mm/ksm/run
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		[ "$(cat /sys/kernel/mm/ksm/full_scans)" -ge 3 ] && break
		sleep 1
	done
	echo 0 > /sys/kernel/mm/ksm/run
}

offline_block() { # one block of memory that the kernel can do without
	for block in $(ls -d /sys/devices/system/memory/memory* | sort -r -V); do
		echo offline > "$block/state" 2>/dev/null && echo "LAB-OFFLINE $block" && return
	done
	return 1
}

lab_fail() { echo "LAB-FAIL $*"; sleep 3600; }

set -e
trap 'lab_fail "the plan ended early"' EXIT
. /plan
trap - EXIT
set +e

section() { echo "LAB-BEGIN $1"; cat; echo "LAB-END $1"; }
section release < /proc/sys/kernel/osrelease
section cmdline < /proc/cmdline
section meminfo < /proc/meminfo
section vmstat < /proc/vmstat
section zoneinfo < /proc/zoneinfo
section iomem < /proc/iomem
section vmcoreinfo < /sys/kernel/vmcoreinfo # where the note lies, and its size
for dir in /proc/[0-9]*; do # all in this shell: no process that exists for the list alone
	read -r comm < "$dir/comm" && echo "${dir#/proc/} $comm"
done > /tmp/ps
section ps < /tmp/ps
echo LAB-READY
[ -e /crash.sh ] && . /crash.sh
while :; do sleep 3600; done
