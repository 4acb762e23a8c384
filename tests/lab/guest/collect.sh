#!/bin/busybox sh
# A capture kernel's init: copy /proc/vmcore to a disk, then run the commands of the disk of programs.
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /programs
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

while read -r module; do insmod "/modules/$module" || echo "LAB-WARN insmod $module"; done < /modules/order

echo "LAB-VMCORE $(stat -c %s /proc/vmcore)"
dd if=/proc/vmcore of=/dev/vdb bs=1M conv=fsync || echo "LAB-FAIL dd"
mount -t ext4 -o ro /dev/vdc /programs || echo "LAB-FAIL mount programs"
mount -t ext4 /dev/vdd /programs/out || echo "LAB-FAIL mount out"
mount -t proc proc /programs/proc
mount -t sysfs sysfs /programs/sys
mount -t devtmpfs dev /programs/dev
grep -E 'MemTotal|MemAvailable' /proc/meminfo > /programs/out/meminfo
chroot /programs /bin/sh /commands || echo "LAB-FAIL commands"
umount /programs/out
sync
echo LAB-COPIED
poweroff -f
