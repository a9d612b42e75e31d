#!/bin/sh
# The first process of the lab machine: plugs its devices in, runs the command in $LAB/command and writes its exit code to $LAB/status.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/home LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mkdir -p /run/home /run/tmp
export TMPDIR=/run/tmp
mount -t hostfs lab /mnt -o "$LAB"
mount -t configfs config /sys/kernel/config
ip link set lo up

# CAN
ip link add vcan0 type vcan
ip link set vcan0 up

# I2C: bus 0 with a device at 0x20 and one at 0x50
insmod "$KERNEL/i2c-stub.ko" chip_addr=0x20,0x50

# SPI: bus 0 with a wire from its output to its input at chip select 0, a memory at 1
insmod "$KERNEL/spi-lab.ko"

# GPIO: a chip with eight lines, of which three have names
chip=/sys/kernel/config/gpio-sim/lab
mkdir -p "$chip/bank0"
echo 8 > "$chip/bank0/num_lines"
echo dut > "$chip/bank0/label"
number=0
for name in POWER RESET LED; do
    mkdir "$chip/bank0/line$number"
    echo $name > "$chip/bank0/line$number/name"
    number=$((number + 1))
done
echo 1 > "$chip/live"

# USB: a device that is a serial port and a stick of 8 MiB
gadget=/sys/kernel/config/usb_gadget/dut
mkdir "$gadget"
echo 0x1d6b > "$gadget/idVendor"
echo 0x0104 > "$gadget/idProduct"
mkdir "$gadget/strings/0x409"
echo LAB0001 > "$gadget/strings/0x409/serialnumber"
echo Lab > "$gadget/strings/0x409/manufacturer"
echo "Virtual DUT" > "$gadget/strings/0x409/product"
mkdir -p "$gadget/configs/c.1/strings/0x409" "$gadget/functions/acm.0" "$gadget/functions/mass_storage.0"
dd if=/dev/zero of=/run/stick bs=1M count=8 2>/dev/null
echo 1 > "$gadget/functions/mass_storage.0/lun.0/removable"
echo /run/stick > "$gadget/functions/mass_storage.0/lun.0/file"
ln -s "$gadget/functions/acm.0" "$gadget/configs/c.1/"
ln -s "$gadget/functions/mass_storage.0" "$gadget/configs/c.1/"
echo dummy_udc.0 > "$gadget/UDC"

cd "$HERE" || exit
sh /mnt/command </dev/null
echo $? > /mnt/status
poweroff -f 2>/dev/null || busybox poweroff -f
