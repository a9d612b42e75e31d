#!/bin/bash
# Makes the kernel of the lab machine for the tests: user-mode Linux, a process, with hardware that is simulated by the kernel
# itself: GPIO lines, CAN, I2C, SPI, USB devices, a camera, bad networks. Usage: build_kernel.sh OUT
# It is built of Debian's source package (6.1); this machine's package lists stay as they are. What is in OUT already stays
# there if it was made as this file says.
set -euo pipefail
out=$(realpath -m "$1")
here=$(dirname "$(realpath "$0")")
recipe=$(cat "$here/build_kernel.sh" "$here/spi-lab.c" | sha256sum)
[[ -x $out/linux && $(cat "$out/recipe" 2>/dev/null) == "$recipe" ]] && exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/apt/{lists/partial,cache/archives/partial} "$out"
cd "$work"

mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1)  # the one that is used already
mirror=${mirror:-http://deb.debian.org/debian}
cat > apt.conf <<CONF
Dir::Etc::SourceParts "/dev/null"; Dir::Etc::SourceList "$work/apt/sources.list";
Dir::State::Lists "$work/apt/lists"; Dir::Cache "$work/apt/cache"; APT::Sandbox::User "root";
CONF
printf 'deb %s bookworm main\n' "$mirror" > apt/sources.list
export APT_CONFIG=$work/apt.conf
apt-get -qq update
apt-get -qq download linux-source-6.1
dpkg -x linux-source-6.1_*.deb package
tar xJf package/usr/src/linux-source-6.1.tar.xz
rm -rf package ./*.deb
cd linux-source-6.1

export ARCH=um
make -s x86_64_defconfig
config() {  # config OPTION VALUE NAME...
    local option=$1
    shift
    for name in "$@"; do ./scripts/config "$option" "$name"; done
}
config -d DEBUG_INFO DEBUG_INFO_DWARF4 DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT GDB_SCRIPTS DEBUG_KERNEL RAID6_PQ BTRFS_FS \
    REISERFS_FS SOUND QUOTA AUTOFS4_FS ISO9660_FS NFS_FS
config -e DEBUG_INFO_NONE MODULES HOSTFS CONFIGFS_FS TMPFS DEVTMPFS OVERLAY_FS UNIX98_PTYS INET UNIX PACKET NET_NS EPOLL \
    SIGNALFD TIMERFD EVENTFD FUTEX POSIX_TIMERS VIRTIO_UML UML_PCI_OVER_VIRTIO
config -e GPIOLIB GPIO_CDEV GPIO_SIM IRQ_SIM                                        # GPIO lines
config -e CAN CAN_RAW CAN_ISOTP CAN_DEV CAN_VCAN                                    # CAN
config -e I2C I2C_CHARDEV                                                          # I2C
config -m I2C_STUB
config -e SPI SPI_MASTER SPI_SPIDEV                                                # SPI
config -e USB_SUPPORT USB USB_ACM USB_GADGET USB_DUMMY_HCD USB_CONFIGFS USB_CONFIGFS_ACM USB_CONFIGFS_MASS_STORAGE SCSI \
    BLK_DEV_SD USB_STORAGE USBIP_CORE USBIP_VHCI_HCD                                # USB devices, both ends
config -e MEDIA_SUPPORT MEDIA_TEST_SUPPORT V4L_TEST_DRIVERS VIDEO_DEV FB VIDEO_VIVID  # a camera
config -e NAMESPACES HIGH_RES_TIMERS VETH NET_SCHED NET_SCH_NETEM                   # bad networks: delay, loss, reordering
make -s olddefconfig
for name in HOSTFS GPIO_SIM CAN_VCAN CAN_ISOTP USB_DUMMY_HCD USB_CONFIGFS_ACM USB_CONFIGFS_MASS_STORAGE USB_ACM BLK_DEV_SD \
    VIDEO_VIVID I2C_CHARDEV SPI_SPIDEV VETH NET_SCH_NETEM; do
    grep -qx "CONFIG_$name=y" .config || { echo "the kernel cannot have $name" >&2; exit 1; }
done
grep -qx CONFIG_I2C_STUB=m .config || { echo "the kernel cannot have I2C_STUB" >&2; exit 1; }
make -s -j"$(nproc)" linux modules
mkdir "$work/spi"
cp "$here/spi-lab.c" "$work/spi/"
echo 'obj-m := spi-lab.o' > "$work/spi/Makefile"
make -s M="$work/spi" modules
strip -o "$out/linux.new" linux
cp drivers/i2c/i2c-stub.ko "$work/spi/spi-lab.ko" "$out/"
mv "$out/linux.new" "$out/linux"
echo "$recipe" > "$out/recipe"  # last: when it is there, all is
