"""What cannot work ends with one line that says what to do, and with the right status; nothing is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from gateway_tools import (
    DEADLINE_S,
    NATENGINE,
    OWNERS_RULES,
    PROJECT,
    UPLINK,
    Done,
    head_state,
    natengine,
    start_process,
)
from natlab import Lab
from natlab.engine import Engine

pytestmark = pytest.mark.lab

# Opening a netlink socket of netfilter's family fails from here on, as in a kernel without nfnetlink.
NO_NFNETLINK = """
import ctypes, os, struct, sys
LOAD_WORD, EQUAL, RETURN = 0x20, 0x15, 0x06                  # classic BPF over struct seccomp_data
SOCKET, ALLOW, ERRNO, NO_PROTOCOL = int(sys.argv[1]), 0x7FFF0000, 0x00050000, 93
program = b"".join(struct.pack("HBBI", *each) for each in [
    (LOAD_WORD, 0, 0, 0), (EQUAL, 0, 5, SOCKET),             # the system call
    (LOAD_WORD, 0, 0, 16), (EQUAL, 0, 3, 16),                # its first argument: AF_NETLINK
    (LOAD_WORD, 0, 0, 32), (EQUAL, 0, 1, 12),                # its third: NETLINK_NETFILTER
    (RETURN, 0, 0, ERRNO | NO_PROTOCOL), (RETURN, 0, 0, ALLOW),
])
libc = ctypes.CDLL(None, use_errno=True)
filters = ctypes.create_string_buffer(program)
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(filters)))
assert libc.prctl(38, 1, 0, 0, 0) == 0                       # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, header, 0, 0) == 0, os.strerror(ctypes.get_errno())     # PR_SET_SECCOMP, a filter
os.execv(sys.argv[2], sys.argv[2:])
"""
SOCKET_CALL = {"x86_64": "41", "aarch64": "198", "riscv64": "198"}

# Root gives up being root only when everything is imported: what it imports may be root's alone to read.
AS_NOBODY = """
import os, sys
from natengine.app import cli, daemon
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(cli.main(sys.argv[1:]))
"""

HOLD_QUEUE = """
from netfilterqueue import NetfilterQueue
queue = NetfilterQueue()
queue.bind(2663, print)
print("bound", flush=True)
input()
"""

Fail = Callable[..., Done]


@pytest.fixture
def fail(lab: Lab, tmp_path: Path) -> Iterator[Fail]:
    """Run `natengine run` to a failure, and look whether that was one line and left nothing."""
    rules = tmp_path / "rules.v4"
    rules.write_text(OWNERS_RULES)
    run_dir = tmp_path / "run"
    before = head_state(lab)

    def run(
        *words: str, env: Mapping[str, str] | None = None, argv: Sequence[str] = NATENGINE, status: int = 1
    ) -> Done:
        settings = {"NATENGINE_RUN_DIR": str(run_dir), "NATENGINE_RULES": str(rules), **(env or {})}
        done = natengine(lab, "run", *words, env=settings, argv=argv)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("natengine: "), done.stderr
        assert not run_dir.exists()
        assert head_state(lab) == before
        return done

    yield run
    assert head_state(lab) == before


def fake_program(directory: Path, name: str, script: str) -> dict[str, str]:
    """Put a shell script in front of a program; returns the environment that finds it."""
    directory.mkdir()
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


# ── the kernel ──────────────────────────────────────────────────────────────────────────────────


def test_no_nfqueue_socket(fail: Fail, tmp_path: Path) -> None:
    """A kernel without nfnetlink: the socket cannot be opened."""
    call = SOCKET_CALL.get(os.uname().machine)
    if call is None:
        pytest.skip("the number of socket(2) is not known for this machine")
    argv = [sys.executable, "-c", NO_NFNETLINK, call, *NATENGINE]
    for fast_path in ("auto", "python"):
        said = fail(argv=argv, env={"NATENGINE_FASTPATH": fast_path}).stderr
        assert "NFQUEUE" in said and "modprobe nfnetlink_queue" in said


@pytest.mark.parametrize(
    "complaint",
    [
        "iptables-restore v1.8.9 (nf_tables): Couldn't load target `NFQUEUE':No such file or directory",
        "Warning: Extension NFQUEUE revision 0 not supported, missing kernel module?\n"
        "iptables-restore: line 3 failed",
    ],
    ids=["iptables", "kernel"],
)
def test_no_nfqueue_target(fail: Fail, tmp_path: Path, complaint: str) -> None:
    """iptables or the kernel has no target NFQUEUE; what iptables says is in the message."""
    script = f"cat >/dev/null\ncat >&2 <<'EOF'\n{complaint}\nEOF\nexit 1"
    said = fail("--hooks", "iptables", env=fake_program(tmp_path / "bin", "iptables-restore", script)).stderr
    assert "modprobe xt_NFQUEUE" in said and complaint.splitlines()[-1] in said


def test_second_hook_is_refused(fail: Fail, tmp_path: Path) -> None:
    """The first table takes its hook and the second one does not: the first is taken back."""
    real = shutil.which("iptables-restore")
    script = f"""text=$(cat)
case "$text" in *'*raw'*NFQUEUE*) echo "iptables-restore: line 3 failed" >&2; exit 1;; esac
echo "$text" | {real} "$@\""""
    said = fail("--hooks", "iptables", env=fake_program(tmp_path / "bin", "iptables-restore", script)).stderr
    assert "table raw" in said


def test_no_nft_queue_expression(fail: Fail, tmp_path: Path) -> None:
    """The kernel refuses what nft sends; what nft says is in the message."""
    script = "cat >/dev/null\necho 'Error: Could not process rule: No such file or directory' >&2\nexit 1"
    said = fail("--hooks", "nft", env=fake_program(tmp_path / "bin", "nft", script)).stderr
    assert "modprobe nft_queue" in said and "No such file or directory" in said


@pytest.mark.parametrize("program", ["iptables", "nft"])
def test_program_is_not_installed(fail: Fail, tmp_path: Path, program: str) -> None:
    """A PATH without it: the message names the package."""
    package = {"iptables": "iptables", "nft": "nftables"}[program]
    assert f"apt-get install {package}" in fail("--hooks", program, env={"PATH": str(tmp_path)}).stderr


def test_neither_is_installed(fail: Fail, tmp_path: Path) -> None:
    """Left to itself it names both."""
    said = fail(env={"PATH": str(tmp_path)}).stderr
    assert "apt-get install iptables" in said and "apt-get install nftables" in said


def test_queue_is_taken(lab: Lab, fail: Fail) -> None:
    """Another program has the queue number; another number is free."""
    argv = [sys.executable, "-c", HOLD_QUEUE]
    holder = lab.node("head").popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "bound\n"
        before = head_state(lab)
        for fast_path in ("auto", "python"):
            env = {"NATENGINE_FASTPATH": fast_path}
            done = fail_with(lab, fail, before.queues, env)
            assert "2663" in done.stderr and "--queue-num" in done.stderr
        with Engine(lab, "--queue-num", "4000"):
            assert "4000" in head_state(lab).queues
    finally:
        holder.communicate("\n", timeout=DEADLINE_S)


def fail_with(lab: Lab, fail: Fail, queues: str, env: Mapping[str, str]) -> Done:
    """As `fail`, where somebody else's queue is there before and after."""
    fail_state = head_state(lab)
    assert fail_state.queues == queues != ""
    done = natengine(lab, "run", env={"NATENGINE_RUN_DIR": f"/run/ltfail{os.getpid()}", **env})
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert not Path(f"/run/ltfail{os.getpid()}").exists()
    assert head_state(lab) == fail_state
    return done


# ── the user ────────────────────────────────────────────────────────────────────────────────────


def test_not_root(fail: Fail) -> None:
    """An ordinary user is told to be root; not by a traceback."""
    assert "must be root" in fail(argv=[sys.executable, "-c", AS_NOBODY]).stderr


def test_not_root_on_the_control_socket(lab: Lab) -> None:
    """The control socket is root's alone: permission denied, in one line."""
    with Engine(lab) as engine:
        engine.run_dir.parent.chmod(0o755)
        done = natengine(lab, "status", env=engine.environment, argv=[sys.executable, "-c", AS_NOBODY])
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "you must be root" in done.stderr


def test_root_without_the_capability(fail: Fail) -> None:
    """Root in a container without CAP_NET_ADMIN: the reason is not another program."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    argv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *NATENGINE]
    for fast_path in ("auto", "python"):
        said = fail(argv=argv, env={"NATENGINE_FASTPATH": fast_path}).stderr
        assert "root" in said and "taken" not in said


# ── interfaces ──────────────────────────────────────────────────────────────────────────────────


def test_interface_is_missing(fail: Fail, tmp_path: Path) -> None:
    """An uplink that does not exist is named."""
    rules = tmp_path / "missing.v4"
    rules.write_text(OWNERS_RULES.replace("bond0.3", "bond0.33"))
    said = fail("--rules", str(rules)).stderr
    assert "bond0.33" in said and "no such interface" in said and "create it" in said


def test_uplink_has_no_address(lab: Lab, fail: Fail) -> None:
    """An uplink without an address is named, with the command that gives it one."""
    address = ["ip", "address", "del", f"{UPLINK['inet3']}/24", "dev", "bond0.3"]
    head = lab.node("head")
    head.run(address, timeout=10)
    try:
        said = fail().stderr
        assert "bond0.3 has no IPv4 address" in said and "ip address add" in said and "bond0.2" not in said
    finally:
        head.run([word.replace("del", "add") for word in address], timeout=10)


# ── directories, files, the environment ─────────────────────────────────────────────────────────


def test_run_directory_is_in_use(lab: Lab, owners_rules: Path) -> None:
    """A second engine in the same run directory is refused, and the first one does not notice."""
    with Engine(lab, "--rules", str(owners_rules)) as engine:
        before = head_state(lab)
        assert engine.process is not None
        for words in (["run"], ["--run-dir", str(engine.run_dir), "run", "--queue-num", "5"]):
            done = natengine(lab, *words, env=engine.environment)
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
            assert f"pid {engine.process.pid}" in done.stderr and "--run-dir" in done.stderr
        assert head_state(lab) == before
        engine.run("status")


def test_run_directory_cannot_be_made(fail: Fail, tmp_path: Path) -> None:
    """A run directory below a file."""
    (tmp_path / "file").touch()
    said = fail(env={"NATENGINE_RUN_DIR": str(tmp_path / "file" / "run")}).stderr
    assert "run directory" in said and "--run-dir" in said


def test_run_directory_of_others(fail: Fail, tmp_path: Path) -> None:
    """A directory that others use, as /tmp, is not taken and closed to them."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "somebody").touch()
    assert "other files" in fail(env={"NATENGINE_RUN_DIR": str(shared)}).stderr
    assert shared.stat().st_mode & 0o777 == 0o777
    assert [each.name for each in shared.iterdir()] == ["somebody"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("*nat\n-A POSTROUTING -o bond0.2 -j MASQERADE\nCOMMIT\n", 2),
        ("*filter\n:FORWARD DROP\n\n# a comment\n-A FORWARD -i\nCOMMIT\n", 5),
        ("*nat\n-A POSTROUTING -s 10.1.0.300 -j MASQUERADE\nCOMMIT\n", 2),
    ],
)
def test_mistake_in_the_rules_file(fail: Fail, tmp_path: Path, text: str, line: int) -> None:
    """The file and the line are named; the status is that of a wrong command."""
    rules = tmp_path / "wrong.v4"
    rules.write_text(text)
    said = fail("--rules", str(rules), status=2).stderr
    assert str(rules) in said and f"line {line}" in said


def test_rules_file_that_is_named_must_exist(fail: Fail, tmp_path: Path) -> None:
    """A file that --rules names and that is not there is a mistake; it is not "no rules"."""
    path = str(tmp_path / "nowhere")
    assert path in fail("--rules", path, status=2).stderr


def test_rules_file_that_is_no_text(fail: Fail, tmp_path: Path) -> None:
    """Neither a directory nor a binary is rules."""
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (binary, tmp_path):
        assert str(path) in fail("--rules", str(path), status=2).stderr


def test_unknown_fast_path(fail: Fail) -> None:
    """A fast path that does not exist is not silently another one."""
    said = fail(env={"NATENGINE_FASTPATH": "nonsense"}).stderr
    assert "NATENGINE_FASTPATH=nonsense" in said and "auto, cython, python" in said


@pytest.fixture
def not_built(tmp_path: Path) -> dict[str, str]:
    """An environment in which natengine has none of its extensions."""
    built = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PROJECT / "natengine", tmp_path / "path" / "natengine", ignore=built)
    # an editable install goes on looking where it was installed from
    (tmp_path / "path" / "sitecustomize.py").write_text(
        "import sys\nsys.meta_path[:] = [each for each in sys.meta_path if 'ditable' not in repr(each)]\n"
    )
    return {"PYTHONPATH": str(tmp_path / "path"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1"}


def test_extension_is_not_built(fail: Fail, not_built: dict[str, str]) -> None:
    """NATENGINE_FASTPATH=cython without the extension says how to build it."""
    said = fail(env={**not_built, "NATENGINE_FASTPATH": "cython"}).stderr
    assert "NATENGINE_FASTPATH=cython" in said and "pip install" in said


def test_auto_without_the_extension(lab: Lab, not_built: dict[str, str], owners_rules: Path) -> None:
    """`auto` then takes the Python one, and the status says so."""
    with Engine(lab, "--rules", str(owners_rules), env={**not_built, "NATENGINE_FASTPATH": "auto"}) as engine:
        assert "python fast path" in engine.run("status").stdout


@pytest.mark.parametrize("words", [["--queue-num", "70000"], ["--queue-num", "x"], ["--nonsense"], ["extra"]])
def test_wrong_options(fail: Fail, words: list[str]) -> None:
    """A wrong option is a wrong command: one line, status 2."""
    fail(*words, status=2)


def test_stdout_is_closed(lab: Lab, owners_rules: Path, tmp_path: Path) -> None:
    """Nobody reads `ready`: the engine ends and cleans up, as any program in a broken pipe."""
    before = head_state(lab)
    words = ["--run-dir", str(tmp_path / "run"), "run", "--rules", str(owners_rules)]
    process = start_process(lab, *words, env={})
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert head_state(lab) == before and not (tmp_path / "run").exists()
