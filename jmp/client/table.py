"""The client classes that come with jmp, by interface id. Nothing else is here: to know what has none costs nothing."""

BUILTIN = {
    "jmp.capture/v1": "jmp.client.capture:CaptureClient",
    "jmp.console/v1": "jmp.client.console:ConsoleClient",
    "jmp.datagram/v1": "jmp.client.network:DatagramClient",
    "jmp.files/v1": "jmp.client.files:FilesClient",
    "jmp.flasher/v1": "jmp.client.flasher:FlasherClient",
    "jmp.network/v1": "jmp.client.network:NetworkClient",
    "jmp.ssh/v1": "jmp.client.ssh:SshClient",
    "jmp.storage/v1": "jmp.client.storage:StorageClient",
    "jmp.video/v1": "jmp.client.video:VideoClient",
    "jmp.vnc/v1": "jmp.client.video:VncClient",
    "jmp.u-boot/v1": "jmp.client.uboot:UBootClient",
}
