"""The simulation without I/O: time is a number, the card a bytes object, and each test a conversation on the console."""

from __future__ import annotations

import hashlib
import math
import re

import pytest

from jmp_drivers.virtual_board.board import FULL_SPEED, INPUT_LIMIT, TABLE, Board
from jmp_drivers.virtual_board.image import BUILT_IN, Image, header, parse
from jmp_drivers.virtual_board.program import ReadCard, State
from jmp_drivers.virtual_board.system import System

PROMPT = "root@virtual:~# "
MIB = 1024 * 1024


class Bench:
    """A board, its card and its clock."""

    def __init__(
        self, *, card: bytes = bytes(4096), boot_time: float = 0.0, password: str = "", baud: int | None = None
    ) -> None:
        self.card = card
        self.now = 1000.0
        self.system = System(card_size=len(card), boot_time=boot_time, password=password)
        self.board = Board(self.system, baud)

    def run(self, until: float = math.inf) -> str:
        """Let the time pass up to `until`, or until the board waits for somebody; what it shows meanwhile."""
        shown = bytearray()
        while True:
            step = self.board.step(self.now)
            shown += step.output
            if step.card is not None:
                at = step.card.offset
                self.board.card_data(step.card, self.card[at : at + step.card.size])
            elif step.wake <= self.now:
                continue
            elif step.wake == math.inf or step.wake > until:
                self.now = max(self.now, until) if until < math.inf else self.now
                return shown.decode()
            else:
                self.now = step.wake

    def on(self) -> str:
        self.board.power_on(self.now)
        return self.run()

    def off(self) -> str:
        self.board.power_off(self.now)
        return self.run()

    def type(self, text: str) -> str:
        assert self.board.type(text.encode()) == len(text.encode())
        return self.run()

    def shell(self, command: str) -> str:
        """A command's output, at a shell that is logged in and waiting."""
        shown = self.type(f"{command}\r")
        assert shown.startswith(f"{command}\r\n")
        assert shown.endswith(PROMPT)
        return shown[len(command) + 2 : -len(PROMPT)].replace("\r\n", "\n")


@pytest.fixture
def bench() -> Bench:
    """Booted and logged in."""
    bench = Bench()
    bench.on()
    bench.type("root\r")
    return bench


# Power and boot ------------------------------------------------------------------------------------------------------


def test_a_board_that_is_off_is_silent_and_deaf() -> None:
    bench = Bench()
    assert bench.run() == ""
    assert bench.type("root\r") == ""
    assert bench.board.network is None
    assert "login: root" not in bench.on()


def test_boots_from_power_on_to_the_login_prompt() -> None:
    bench = Bench()
    shown = bench.on()
    assert re.match(
        r"\r\nVirtual Boot .*Hit any key to stop autoboot:  2 .*Starting kernel \.\.\.\r\n\r\n"
        r"\[    0\.000000\] Booting Linux .*Linux version 6.*Run /sbin/init.*"
        r"virtual-linux 1\.0 virtual ttyAMA0\r\n\r\nvirtual login: $",
        shown,
        re.DOTALL,
    )
    assert shown.replace("\r\n", "").count("\n") == 0
    assert bench.board.state is State.LOGIN
    assert bench.board.network == 1


def test_boot_time_covers_countdown_and_kernel() -> None:
    bench = Bench(boot_time=2.0)
    bench.board.power_on(bench.now)
    assert bench.run(until=1000.9).endswith("\b\b\b 1 ")
    assert "Booting Linux" in bench.run(until=1001.1)
    assert bench.board.state is State.KERNEL
    assert bench.board.network is None
    assert bench.run().endswith("login: ")
    assert bench.now == pytest.approx(1002.0)


def test_what_is_typed_while_the_kernel_boots_is_lost() -> None:
    bench = Bench(boot_time=2.0)
    bench.board.power_on(bench.now)
    bench.run(until=1001.5)
    assert bench.board.state is State.KERNEL
    assert bench.type("root\r").endswith("virtual login: ")


def test_power_off_cuts_the_board_short_and_the_next_boot_is_like_the_first() -> None:
    bench = Bench(boot_time=2.0)
    bench.board.power_on(bench.now)
    bench.run(until=1001.5)
    assert bench.off() == ""
    assert bench.board.state is State.OFF
    assert bench.on().startswith("\r\nVirtual Boot")
    assert bench.board.network == 1


def test_power_on_while_on_changes_nothing(bench: Bench) -> None:
    assert bench.on() == ""
    assert bench.shell("echo still here") == "still here\n"


def test_every_boot_has_a_network_of_its_own(bench: Bench) -> None:
    assert bench.board.network == 1
    bench.type("reboot\r")
    assert bench.board.network == 2


def test_an_illegal_move_names_both_states() -> None:
    bench = Bench()
    with pytest.raises(RuntimeError, match="off cannot lead to shell"):
        bench.board._enter(State.SHELL)
    assert TABLE.keys() == set(State)


# The boot prompt -----------------------------------------------------------------------------------------------------


def stopped(bench: Bench) -> Bench:
    """At the boot prompt."""
    bench.board.power_on(bench.now)
    bench.run(until=bench.now + 0.1)
    assert bench.type(" ") == "\r\n=> "
    return bench


def test_a_key_stops_the_countdown_and_boot_continues() -> None:
    bench = stopped(Bench(boot_time=2.0))
    assert bench.board.state is State.PROMPT
    assert bench.type("version\r") == "version\r\nVirtual Boot 2026.01 (jmp virtual board)\r\n=> "
    assert bench.type("boot\r").endswith("login: ")


def test_environment_variables_reach_the_kernel_and_a_reset_forgets_them() -> None:
    bench = stopped(Bench(boot_time=2.0))
    assert bench.type("setenv bootargs quiet splash; printenv bootargs\r").endswith("bootargs=quiet splash\r\n=> ")
    assert "bootdelay=2\r\n" in bench.type("printenv\r")
    assert '"nothing" not defined' in bench.type("printenv nothing\r")
    assert "Kernel command line: quiet splash\r\n" in bench.type("boot\r")
    bench.type("root\r")
    assert bench.shell("cat /proc/cmdline") == "quiet splash\n"
    assert "root=/dev/mmcblk0" in bench.type("reboot\r")


def test_the_boot_prompt_knows_its_commands() -> None:
    bench = stopped(Bench(boot_time=2.0))
    assert bench.type("\r") == "\r\n=> "
    assert "setenv" in bench.type("help\r")
    assert "Unknown command 'foo' - try 'help'\r\n=> " in bench.type("foo bar\r")
    assert "Usage: see 'help' for 'boot'\r\n=> " in bench.type("boot now\r")
    assert bench.type("setenv bootargs\rprintenv bootargs\r").endswith("not defined\r\n=> ")
    assert bench.type("boo\x03") == "boo^C\r\n<INTERRUPT>\r\n=> "
    assert "resetting ...\r\n\r\nVirtual Boot" in bench.type("reset\r")


def test_the_environment_is_bounded() -> None:
    bench = stopped(Bench(boot_time=2.0))
    for number in range(100):
        bench.type(f"setenv x{number} y\r")
    assert "## Error: environment full\r\n" in bench.type("setenv one more\r")
    assert bench.type("setenv x1 new; printenv x1\r").endswith("x1=new\r\n=> ")


# Images --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sector", "image"),
    [
        (b"", BUILT_IN),
        (bytes(512), BUILT_IN),
        (b"#!jmp-image name=demo version=2.1\nrest", Image("demo", "2.1")),
        (b"#!jmp-image version=2.1 arch=arm64 name=demo\n", Image("demo", "2.1")),
        (header(Image("a-b", "1+git")) + bytes(400), Image("a-b", "1+git")),
        (b"#!jmp-image name=demo\n", None),
        (b"#!jmp-image name=demo version=\n", None),
        (b"#!jmp-image name=demo version=2.1", None),
        (b"#!jmp-imagename=demo version=2.1\n", None),
        (b"\0\0\0\x01", None),
        (b"\xff" * 512, None),
    ],
)
def test_the_first_sector_decides_what_boots(sector: bytes, image: Image | None) -> None:
    assert parse(sector) == image


def test_a_flashed_image_runs_after_the_next_boot(bench: Bench) -> None:
    assert 'VERSION_ID="1.0"' in bench.shell("cat /etc/os-release")
    bench.card = header(Image("demo", "2.1")) + bytes(4000)
    assert 'VERSION_ID="1.0"' in bench.shell("cat /etc/os-release")
    bench.off()
    assert "Image: demo 2.1\r\n" in bench.on()
    bench.type("root\r")
    assert bench.shell("cat /etc/os-release") == ('NAME="demo"\nID=demo\nVERSION_ID="2.1"\nPRETTY_NAME="demo 2.1"\n')


def test_a_bad_image_ends_at_the_boot_prompt() -> None:
    bench = Bench(card=b"garbage" + bytes(4089))
    assert bench.on().endswith("Bad image, dropping to boot prompt\r\n=> ")
    assert bench.type("boot\r").endswith("Bad image, dropping to boot prompt\r\n=> ")
    assert bench.board.network is None
    bench.card = bytes(4096)
    assert bench.type("boot\r").endswith("login: ")


# Login ---------------------------------------------------------------------------------------------------------------


def test_root_needs_no_password_by_default() -> None:
    bench = Bench()
    bench.on()
    assert bench.type("\r") == "\r\nvirtual login: "
    assert bench.type("root\r") == f"root\r\n{PROMPT}"


def test_a_password_is_asked_for_and_not_echoed() -> None:
    bench = Bench(password="secret")
    bench.on()
    assert bench.type("root\r") == "root\r\nPassword: "
    assert bench.type("secrX\x7f\x7fret\r") == f"\r\n{PROMPT}"


@pytest.mark.parametrize(("user", "password"), [("root", "wrong"), ("root", ""), ("guest", "secret")])
def test_a_wrong_password_or_user_is_refused(user: str, password: str) -> None:
    bench = Bench(password="secret")
    bench.on()
    bench.type(f"{user}\r")
    assert "Login incorrect\r\n" in bench.type(f"{password}\r")
    assert bench.board.state is State.LOGIN


def test_other_users_are_refused_even_without_a_password() -> None:
    bench = Bench()
    bench.on()
    assert "Login incorrect\r\n" in bench.type("guest\r\r")


def test_ctrl_c_and_ctrl_d_at_the_login_begin_again() -> None:
    bench = Bench(password="secret")
    bench.on()
    assert bench.type("ro\x03") == "ro^C\r\nvirtual login: "
    assert bench.type("\x04") == "virtual login: "
    assert bench.type("root\r\x03").endswith("virtual login: ")


@pytest.mark.parametrize("farewell", ["exit\r", "logout\r", "\x04"])
def test_the_shell_ends_at_the_login(bench: Bench, farewell: str) -> None:
    assert bench.type(farewell).endswith("logout\r\n\r\nvirtual-linux 1.0 virtual ttyAMA0\r\n\r\nvirtual login: ")


def test_a_whole_dialogue_can_be_sent_ahead() -> None:
    bench = Bench(password="secret")
    bench.on()
    assert bench.type("root\r\nsecret\r\necho hi; exit\r\n").endswith("hi\r\nlogout\r\n" + bench_issue(bench))


def bench_issue(bench: Bench) -> str:
    return f"\r\nvirtual-linux 1.0 virtual ttyAMA0\r\n\r\n{bench.system.hostname} login: "


# The terminal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_any_line_ending_is_one_line_ending(bench: Bench, end: str) -> None:
    assert bench.type(f"echo a{end}echo b{end}") == f"echo a\r\na\r\n{PROMPT}echo b\r\nb\r\n{PROMPT}"


def test_a_line_ending_split_in_two_is_still_one(bench: Bench) -> None:
    bench.type("echo a\r")
    assert bench.type("\n") == ""


def test_line_editing(bench: Bench) -> None:
    assert bench.type("ecko\x7f\x08ho é\x7fx\r") == f"ecko\b \b\b \bho é\b \bx\r\nx\r\n{PROMPT}"
    assert bench.type("\x7f") == ""
    assert bench.type("abc\x15echo ok\r") == f"abc\b \b\b \b\b \becho ok\r\nok\r\n{PROMPT}"
    assert bench.type("ec\x1b[A\x1bOP\x1b[1;5C\x1bxho\t ok\r") == f"echo ok\r\nok\r\n{PROMPT}"
    assert bench.type("ec\x04ho ok\r") == f"echo ok\r\nok\r\n{PROMPT}"


def test_a_line_is_bounded(bench: Bench) -> None:
    shown = bench.type("echo " + 5000 * "x" + "\r")
    assert shown.count("\a") == 5005 - 4096
    assert shown.count("x") == 2 * (4096 - 5)


def test_waiting_input_is_bounded_and_taken_later(bench: Bench) -> None:
    bench.board.type(b"sleep 1\r")
    bench.board.step(bench.now)
    assert bench.board.type(bytes(INPUT_LIMIT + 1)) == INPUT_LIMIT
    bench.run()
    assert bench.board.type(b"x") == 1


def test_ctrl_c_drops_the_line(bench: Bench) -> None:
    assert bench.type("ech\x03") == f"ech^C\r\n{PROMPT}"
    assert bench.shell("echo $?") == "130\n"


@pytest.mark.parametrize(
    "command", ["sleep 1000", "seq 1000000000", "seq 1000000000 | wc -l", "sha256sum /dev/mmcblk0"]
)
def test_ctrl_c_ends_a_command_and_what_was_typed_ahead(command: str) -> None:
    bench = Bench(card=bytes(64 * MIB))
    bench.on()
    bench.type("root\r")
    bench.board.type(command.encode() + b"\r")
    for _ in range(20):
        step = bench.board.step(bench.now)
        if step.card is not None:
            bench.board.card_data(step.card, bytes(step.card.size))
    bench.board.type(b"echo never\r\x03")
    assert bench.run().endswith(f"^C\r\n{PROMPT}")
    assert bench.shell("echo $?") == "130\n"


# Commands ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("", ""),
        ("# nothing", ""),
        ('echo a  \'b  c\' "d\\"e" f\\ g a#b # end', 'a b  c d"e f g a#b\n'),
        ("echo 'quo''ted'\"$USER\"-${HOME}$ \"\\x\" ''.", "quotedroot-/root$ \\x .\n"),
        ("X='1; 2'; echo $X", "1; 2\n"),
        ("echo -n a; echo b", "ab\n"),
        ("true && echo yes || echo no", "yes\n"),
        ("false && echo yes || echo no", "no\n"),
        ("false; echo $?; echo $?", "1\n0\n"),
        ("foo; echo $?", "sh: foo: command not found\n127\n"),
        ("seq 3", "1\n2\n3\n"),
        ("seq -1 1", "-1\n0\n1\n"),
        ("seq 0; echo $?", "0\n"),
        ("seq 100000 | head -n 2", "1\n2\n"),
        ("seq 100000 | head -c 3", "1\n2"),
        ("seq 100000 | wc -l", "100000\n"),
        ("seq 20 | head | wc -l", "10\n"),
        ("seq 100 | grep 7$ | grep -v ^1 | head -n 2", "7\n27\n"),
        ("seq 20 | grep ^2$", "2\n"),
        ("echo Abc | grep -i aBC && echo Abc | grep B; echo $?", "Abc\n1\n"),
        ("repeat 3 a b", "a b\na b\na b\n"),
        ("repeat 100000 0123456789 | wc -c", "1100000\n"),
        ("echo -n abc | sha256sum", f"{hashlib.sha256(b'abc').hexdigest()}  -\n"),
        ("echo through | cat", "through\n"),
        ("cat /etc/hostname; hostname; whoami", "virtual\nvirtual\nroot\n"),
        ("uname", "Linux\n"),
        ("uname -m", "aarch64\n"),
        ("ls /", "dev\netc\nproc\n root\n".replace(" ", "")),
        ("ls /dev/", "mmcblk0\nnull\n"),
        ("ls; ls /etc/../etc/hostname", "/etc/../etc/hostname\n"),
        ("ls nope", "ls: nope: No such file or directory\n"),
        ("cat nope /etc", "cat: nope: No such file or directory\n"),
        ("cat /etc", "cat: /etc: Is a directory\n"),
        ("cat", "cat: name a file, or put it behind a pipe\n"),
        ("cat /dev/null; echo $?", "0\n"),
        ("wc -c /etc/hostname", "8 /etc/hostname\n"),
        ("dd if=/etc/hostname bs=2 skip=1 count=2", "rtua2+0 records in\n2+0 records out\n4 bytes copied\n"),
        ("dd if=/etc/hostname of=/dev/null", "0+1 records in\n0+1 records out\n8 bytes copied\n"),
        ("dd if=/etc/hostname of=/dev/mmcblk0", "dd: /dev/mmcblk0: Read-only file system\n"),
        ("dd if=/etc/hostname bs=0", "dd: bs must not be 0\n"),
        ("dd if=/etc/hostname bs=x", "dd: invalid number 'x'\n"),
        ("sleep x", "sleep: usage: sleep SECONDS\n"),
        ("sleep x; echo $?", "sleep: usage: sleep SECONDS\n1\n"),
        ("foo | wc -l", "sh: foo: command not found\n0\n"),
        ("echo 'open", "sh: syntax error: unterminated quoted string\n"),
        ('echo "open', "sh: syntax error: unterminated quoted string\n"),
        ("| wc", 'sh: syntax error: unexpected "|"\n'),
        ("true &&", 'sh: syntax error: unexpected "newline"\n'),
        ("echo a > b", "sh: '>' is not supported by this shell\n"),
        ('echo "`id`"', "sh: '`' is not supported by this shell\n"),
    ],
)
def test_shell(bench: Bench, command: str, output: str) -> None:
    assert bench.shell(command) == output


@pytest.mark.parametrize(
    "command",
    [
        "date now",
        "dd",
        "dd if=a bad=1",
        "grep",
        "head -x",
        "head a b",
        "repeat 3",
        "seq",
        "seq a",
        "uname -x",
        "wc",
        "ls -l",
    ],
)
def test_wrong_arguments_are_named(bench: Bench, command: str) -> None:
    assert bench.shell(command).startswith(f"{command.split()[0]}: ")
    assert bench.shell("echo $?") == "1\n"


def test_a_syntax_error_is_status_2(bench: Bench) -> None:
    bench.shell("true | | true")
    assert bench.shell("echo $?") == "2\n"


def test_time_passes(bench: Bench) -> None:
    before = bench.now
    assert bench.shell("sleep 90.5; cat /proc/uptime") == f"{90.5:.2f} {181:.2f}\n"
    assert bench.now - before == pytest.approx(90.5, abs=0.01)
    assert " up 1 min,  load average: " in bench.shell("uptime")
    bench.shell("sleep 7200")
    assert " up 2:01,  load average: " in bench.shell("uptime")


def test_the_date_is_the_wall_clock(bench: Bench) -> None:
    bench.system.epoch = 1767225600 - bench.now
    assert bench.shell("date") == "Thu Jan  1 00:00:00 UTC 2026\n"
    assert bench.shell("date +%s") == "1767225600\n"


def test_the_usual_files(bench: Bench) -> None:
    assert "processor\t: 1\n" in bench.shell("cat /proc/cpuinfo")
    assert "MemTotal:         524288 kB\n" in bench.shell("cat /proc/meminfo")
    assert bench.shell("cat /proc/version").startswith("Linux version 6.")
    assert "mmcblk0: mmc0:0001 VIRT 0.0 MiB\n" in bench.shell("dmesg | grep mmcblk0:")
    assert bench.shell("uname -a").startswith("Linux virtual 6.")
    assert "Mem:         524288" in bench.shell("free")
    assert {"seq [FIRST] LAST: numbered lines", "exit: end this login"} <= set(bench.shell("help").splitlines())


def test_poweroff_and_reboot(bench: Bench) -> None:
    assert "reboot: Restarting system\r\n\r\nVirtual Boot" in bench.type("reboot\r")
    bench.type("root\r")
    assert bench.type("poweroff\r").endswith("reboot: Power down\r\n")
    assert bench.board.state is State.OFF
    assert bench.on().endswith("login: ")


def test_the_card_is_read_in_pieces() -> None:
    bench = Bench(card=header(Image("demo", "1")) + bytes(range(256)) * 4096)
    bench.on()
    bench.type("root\r")
    card = bench.card
    assert bench.shell("sha256sum /dev/mmcblk0") == f"{hashlib.sha256(card).hexdigest()}  /dev/mmcblk0\n"
    part = f"{hashlib.sha256(card[1024:3072]).hexdigest()}  -\n"
    stats = "2+0 records in\n2+0 records out\n2048 bytes copied\n"
    assert bench.shell("dd if=/dev/mmcblk0 bs=1k skip=1 count=2 | sha256sum") == stats + part
    assert bench.shell("head -n 1 /dev/mmcblk0") == "#!jmp-image name=demo version=1\n"
    assert bench.shell("dd if=/dev/mmcblk0 skip=1G | wc -c").endswith("0 bytes copied\n0\n")


def test_a_card_that_does_not_answer_is_an_error(bench: Bench) -> None:
    bench.card = b""
    assert bench.shell("sha256sum /dev/mmcblk0; echo $?") == "sha256sum: /dev/mmcblk0: Input/output error\n1\n"
    assert bench.type("reboot\r").endswith("MMC: no card, dropping to boot prompt\r\n=> ")


def test_a_card_without_newlines_does_not_fill_the_memory() -> None:
    bench = Bench(card=bytes(4 * MIB))
    bench.on()
    bench.type("root\r")
    assert bench.shell("grep x /dev/mmcblk0; echo $?") == "1\n"


def test_an_answer_from_the_card_that_comes_too_late_is_ignored(bench: Bench) -> None:
    bench.board.type(b"sha256sum /dev/mmcblk0\r")
    request: ReadCard | None = None
    while request is None:
        request = bench.board.step(bench.now).card
    assert bench.type("\x03").endswith(PROMPT)
    bench.board.card_data(request, b"late")
    assert bench.shell("echo $?") == "130\n"


# The serial line -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baud", [110, 300, 9600, 115200])
def test_the_baud_rate_limits_the_output_without_changing_it(baud: int) -> None:
    bench = Bench(baud=baud)
    start = bench.now
    shown = bench.on()
    assert shown == Bench().on()
    assert bench.now - start == pytest.approx(len(shown) * 10 / baud, rel=0.05)


def test_full_speed_is_several_megabytes_a_second(bench: Bench) -> None:
    start = bench.now
    shown = bench.shell("seq 1000000")
    assert shown == "".join(f"{number}\n" for number in range(1, 1_000_001))
    assert len(shown) / (bench.now - start) > 0.8 * FULL_SPEED > 5_000_000


def test_power_off_loses_what_is_still_on_its_way() -> None:
    bench = Bench(baud=300)
    bench.board.power_on(bench.now)
    bench.board.step(bench.now)
    assert bench.off() == ""
