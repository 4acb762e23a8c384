#!/bin/busybox sh
# The capture kernel's init: hand the crashed kernel's memory out through the virtio disk.
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

while read -r module; do insmod "/modules/$module" || echo "LAB-WARN insmod $module"; done < /modules/order

size=$(stat -c %s /proc/vmcore)
echo "LAB-VMCORE $size"
if dd if=/proc/vmcore of=/dev/vdb bs=1M conv=fsync; then
	echo LAB-COPIED
else
	echo "LAB-FAIL dd"
fi
sync
poweroff -f
