# Read by init.sh at the end: load the capture kernel, then crash.
# The capture kernel sees both disks; its own is the second one.
PATH=/bin:/usr/sbin:/sbin kexec -p /vmlinuz --initrd=/capture \
	--append="console=ttyS0 loglevel=4 nr_cpus=1 irqpoll reset_devices panic=-1" || lab_fail kexec
rm /vmlinuz /capture
echo c > /proc/sysrq-trigger
