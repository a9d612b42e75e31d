// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * An SPI bus for the lab machine, with two chips on it: number 0 sends back what it gets, as a wire from MOSI to MISO does;
 * number 1 is a memory of 64 KiB with the commands of SPI flash (9f, 05, 06, 04, 02, 03), which understands modes 0 and 3 only.
 */
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/spi/spi.h>

#define SIZE 65536

static u8 memory[SIZE];
static bool writable;
static const u8 jedec[3] = { 0xef, 0x40, 0x10 };

struct talk {
	u8 head[4];	/* command and address */
	unsigned int at;	/* bytes since the chip was selected */
};

static u8 chip_answer(struct talk *talk, u8 got)
{
	unsigned int at = talk->at++;
	u32 place = (talk->head[2] << 8 | talk->head[3]) + at - 4;

	if (at < 4)
		talk->head[at] = got;
	switch (talk->head[0]) {
	case 0x9f:
		return at >= 1 && at <= 3 ? jedec[at - 1] : 0xff;
	case 0x05:
		return at ? writable << 1 : 0xff;
	case 0x06:
	case 0x04:
		writable = talk->head[0] == 0x06;
		return 0xff;
	case 0x02:
		if (at >= 4 && writable)
			memory[place % SIZE] = got;
		return 0xff;
	case 0x03:
		return at >= 4 ? memory[place % SIZE] : 0xff;
	}
	return 0xff;
}

static int lab_transfer(struct spi_controller *bus, struct spi_message *message)
{
	struct spi_device *spi = message->spi;
	bool heard = (spi->mode & (SPI_CPOL | SPI_CPHA)) == SPI_MODE_0 || (spi->mode & (SPI_CPOL | SPI_CPHA)) == SPI_MODE_3;
	struct spi_transfer *transfer;
	struct talk talk = {};
	unsigned int i;

	list_for_each_entry(transfer, &message->transfers, transfer_list) {
		const u8 *out = transfer->tx_buf;
		u8 *in = transfer->rx_buf;

		for (i = 0; i < transfer->len; i++) {
			u8 sent = out ? out[i] : 0;
			u8 got = !spi->chip_select ? sent : heard ? chip_answer(&talk, sent) : 0xff;

			if (in)
				in[i] = got;
		}
		message->actual_length += transfer->len;
		if (transfer->cs_change)
			talk.at = 0;
	}
	message->status = 0;
	spi_finalize_current_message(bus);
	return 0;
}

static int lab_probe(struct platform_device *pdev)
{
	struct spi_board_info chip = { .modalias = "dh2228fv", .max_speed_hz = 10000000 };  /* one that spidev takes */
	struct spi_controller *bus = devm_spi_alloc_master(&pdev->dev, 0);
	int error;

	if (!bus)
		return -ENOMEM;
	bus->bus_num = 0;
	bus->num_chipselect = 2;
	bus->mode_bits = SPI_CPOL | SPI_CPHA;
	bus->bits_per_word_mask = SPI_BPW_MASK(8);
	bus->max_speed_hz = 10000000;
	bus->transfer_one_message = lab_transfer;
	error = devm_spi_register_controller(&pdev->dev, bus);
	if (error)
		return error;
	for (chip.chip_select = 0; chip.chip_select < 2; chip.chip_select++)
		if (!spi_new_device(bus, &chip))
			return -ENODEV;
	return 0;
}

static struct platform_driver lab_driver = { .probe = lab_probe, .driver = { .name = "spi-lab" } };
static struct platform_device *lab_device;

static int __init lab_init(void)
{
	int error = platform_driver_register(&lab_driver);

	if (error)
		return error;
	lab_device = platform_device_register_simple("spi-lab", -1, NULL, 0);
	if (IS_ERR(lab_device))
		platform_driver_unregister(&lab_driver);
	return PTR_ERR_OR_ZERO(lab_device);
}

static void __exit lab_exit(void)
{
	platform_device_unregister(lab_device);
	platform_driver_unregister(&lab_driver);
}

module_init(lab_init);
module_exit(lab_exit);
MODULE_DESCRIPTION("An SPI bus for the lab machine");
MODULE_LICENSE("GPL");
