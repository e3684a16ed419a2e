"""Agents that attack what runs them; `attack` does what its task names, each of the rest is one way."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("LIGHTNING_TASK", "nowhere/task.json")).parent
HONEST = json.dumps({"code": 0, "output": "forged", "note": None})
CONTENTS = {
    "garbage": b"\x00 garbage\n",
    "bad UTF-8": b'{"output": "\xff\xfe"}',
    "a list": b"[1,2]",
    "an error that is a list": b'{"error": [1]}',
    "a note that is a number": b'{"output": 1, "note": 5}',
    "deep nesting": b"[" * 200_000,
    "a long number": b'{"output": ' + b"1" * 5_000 + b"}",
}


def attack(task: dict[str, Any]) -> Any:
    """All attempts of a test are under way together when the one that is to attack does."""
    meeting = Path(task["meeting"])
    began = Path(f"{meeting}.{os.environ['LIGHTNING_ROLLOUT_ID']}")
    is_first, _ = not began.exists(), began.touch()
    (meeting / os.environ["LIGHTNING_ROLLOUT_ID"]).touch()
    while len(list(meeting.iterdir())) < task["of"]:
        time.sleep(0.01)
    if task.get("way") is not None:
        return globals()[task["way"]](task) or "honest"
    if task.get("first_ones_stay") and is_first:
        time.sleep(600)
    return "honest"


def leave(task: dict[str, Any]) -> Any:
    """Something in the attempt's folder that is no file as it should be; ends as if nothing had happened."""
    path = FOLDER / task["name"]
    what = task["what"]
    if what == "folder":
        path.mkdir()
    elif what == "link":
        (FOLDER / "elsewhere").write_text(HONEST)
        path.symlink_to(FOLDER / "elsewhere")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "300 MB":
        with path.open("wb") as file:
            file.truncate(300 * 1024 * 1024)
    elif what == "many lines":
        path.write_bytes(b"Cg==\n" * 100_000)
    else:
        path.write_bytes(CONTENTS[what])
    if task["name"] == "result.json":
        os._exit(0)


def leave_a_deep_folder(task: dict[str, Any]) -> Any:
    os.chdir(FOLDER)
    for _ in range(1_200):
        os.mkdir("d")
        os.chdir("d")


def replace_the_folder(task: dict[str, Any]) -> Any:
    FOLDER.rename(f"{FOLDER}.moved")
    (FOLDER.parent / "another").mkdir()
    (FOLDER.parent / "another" / "result.json").write_text(HONEST)
    FOLDER.symlink_to("another")
    os._exit(0)


def occupy_the_logs(task: dict[str, Any]) -> Any:
    """What it printed would be written over, or into, or block."""
    print("something")
    folder = Path(task["logs"]) / os.environ["LIGHTNING_ROLLOUT_ID"]
    folder.mkdir(parents=True)
    os.mkfifo(folder / f"{os.environ['LIGHTNING_ATTEMPT_ID']}.stdout")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def orphan(task: dict[str, Any]) -> Any:
    """A process that nothing marks as this attempt's; returns once its pid is in `task["orphan"]`."""
    path = task["orphan"]
    subprocess.run(
        [
            "setsid",
            "-f",
            "env",
            "-i",
            "/bin/sh",
            "-c",
            f"echo $$ > {path}.part; mv {path}.part {path}; exec /bin/sleep 600",
        ],
        check=True,
    )
    while not Path(path).exists():
        time.sleep(0.01)


def kill_parent(task: dict[str, Any]) -> Any:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def orphan_and_kill_parent(task: dict[str, Any]) -> Any:
    orphan(task)
    kill_parent(task)


def stop_parent(task: dict[str, Any]) -> Any:
    os.kill(os.getppid(), signal.SIGSTOP)


def stop_fork_server(task: dict[str, Any]) -> Any:
    os.kill(parent_of(os.getppid()), signal.SIGSTOP)


def kill_fork_server(task: dict[str, Any]) -> Any:
    os.kill(parent_of(os.getppid()), signal.SIGKILL)
    time.sleep(600)


def start_many(task: dict[str, Any]) -> Any:
    """Three generations; as many as it can, and 400 at most."""
    for _ in range(20):
        if os.fork() == 0:
            os.setsid()
            for _ in range(19):
                if os.fork() == 0:
                    time.sleep(600)
            time.sleep(600)
    time.sleep(600)


def end_many_one_after_another(task: dict[str, Any]) -> Any:
    for _ in range(150):
        subprocess.run(["setsid", "-f", "true"], check=True)


def start_threads(task: dict[str, Any]) -> Any:
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    time.sleep(600)


def take_memory(task: dict[str, Any]) -> Any:
    return len(bytearray(400 * 1024 * 1024))


def open_files_of_its_own(task: dict[str, Any]) -> Any:
    kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]
    return len(kept)


def write_a_large_file(task: dict[str, Any]) -> Any:
    with (FOLDER / "large").open("wb") as file:
        for _ in range(30):
            file.write(bytes(1024 * 1024))


def print_without_end(task: dict[str, Any]) -> Any:
    while True:
        sys.stdout.write("x" * 99_999 + "\n")


def show_limits(task: dict[str, Any]) -> Any:
    own = (resource.RLIMIT_DATA, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
    return [list(resource.getrlimit(one)) for one in own] + [int(Path("/proc/self/oom_score_adj").read_text())]


def show_descriptors(task: dict[str, Any]) -> Any:
    return sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}"))
