"""The checks that every sandbox backend must pass; docs/sandbox-contract.md in short, as something to run.

They need nothing but the image of mrp.runtime.contract.image, so they run wherever the backend does, also against a
real cloud.
"""

import json
import threading

from mrp.cache.store import Entry
from mrp.runtime.contract.bench import LIMITS, Bench, listening
from mrp.runtime.contract.check import Broken, Check, expect
from mrp.runtime.sandbox.protocol import Endpoint
from mrp.specs.work import OUT, TASK, WORK

LEFT_RUNNING = "299.125"
"""The argument of the `sleep` that a check leaves running; nothing else is called so."""


def _exit_code(bench: Bench) -> None:
    expect(_ended(bench, "exit 3"), (3, None), "(exit code, limit) of `exit 3`")
    expect(_ended(bench, "exit 0"), (0, None), "(exit code, limit) of `exit 0`")


def _signal(bench: Bench) -> None:
    expect(_ended(bench, "kill -SEGV $$"), (139, None), "(exit code, limit) of a process killed by signal 11")


def _no_program(bench: Bench) -> None:
    done = bench.run("no-such-program")
    expect((done.exit_code, done.limit), (127, None), "(exit code, limit) of a program that is not there")
    done = bench.run("/work/data", files={WORK: {"data": "x"}})
    expect((done.exit_code, done.limit), (126, None), "(exit code, limit) of a file that cannot be executed")


def _stdout(bench: Bench) -> None:
    expect(bench.stdout(bench.run("sh", "-c", "echo out; echo err >&2")), "out\n", "stdout")


def _stderr(bench: Bench) -> None:
    expect(bench.stderr(bench.run("sh", "-c", "echo out; echo err >&2")), "err\n", "stderr")


def _long_log(bench: Bench) -> None:
    done = bench.python("import sys\nfor _ in range(20): sys.stdout.write('x' * 2**20)\nprint('end')")
    size = len(bench.store.get_bytes(done.stdout))
    if not 16 * 2**20 <= size < 16 * 2**20 + 200:
        raise Broken(f"of a log of 20 MiB {size} bytes were kept, not 16 MiB and a line that says so")


def _stdin(bench: Bench) -> None:
    done = bench.run("cat", timeout=20)
    expect((done.exit_code, bench.stdout(done)), (0, ""), "what `cat` did with an empty stdin")


def _outputs(bench: Bench) -> None:
    script = "echo a > a; echo b > b; chmod +x b; mkdir -p d/empty; ln -s a l; ln -s /etc/passwd far; echo o > /out/o"
    done = bench.run("sh", "-c", script, files={WORK: {"given": "G"}})
    a, b, given = (bench.store.put_bytes(text) for text in (b"a\n", b"b\n", b"G"))
    wanted = {
        "a": Entry("f", a),
        "b": Entry("x", b),
        "d": Entry("d"),
        "d/empty": Entry("d"),
        "far": Entry("l", target="/etc/passwd"),
        "given": Entry("f", given),
        "l": Entry("l", target="a"),
    }
    expect(done.outputs[WORK], bench.store.put_tree(wanted), "the digest of /work")
    expect(bench.files(done, OUT), {"o": "o\n"}, "what was kept of /out")


def _fresh_folders(bench: Bench) -> None:
    bench.run("sh", "-c", "echo x > /work/x; echo x > /out/x; echo x > /tmp/x", files={WORK: {"a": "a"}})
    done = bench.run("sh", "-c", "ls -A /work /out /tmp", files={WORK: {"a": "a"}})
    if "x" in bench.stdout(done).split():
        raise Broken(f"a later process found what an earlier one left: {bench.stdout(done)!r}")


def _inputs(bench: Bench) -> None:
    files = {TASK: {"record.json": "R", "bin/run*": "#!/bin/sh\necho ran\n"}, WORK: {"w": "W"}}
    done = bench.run("sh", "-c", "cat /task/record.json w; pwd; /task/bin/run", files=files)
    expect(bench.stdout(done), "RW/work\nran\n", "what a process saw of its inputs")


def _read_only(bench: Bench) -> None:
    script = "for f in /task/record.json /task/new /usr/new /etc/passwd; do "
    script += 'if (echo x > $f) 2>/dev/null; then echo "wrote $f"; fi; done; chmod 777 /task/record.json 2>/dev/null'
    done = bench.run("sh", "-c", f"{script}; (echo x >> /task/record.json) 2>/dev/null; cat /task/record.json",
                     files={TASK: {"record.json": "R"}})  # fmt: skip
    expect(bench.stdout(done), "R", "what could be written that is read-only")


def _times(bench: Bench) -> None:
    source = "import os\nfor path in ('/work/f', '/work/x', '/task/t'):\n    found = os.stat(path)\n"
    source += "    print(int(found.st_mtime), oct(found.st_mode)[-3:])"
    done = bench.python(source, files={WORK: {"f": "1", "x*": "2"}, TASK: {"t": "3"}})
    wanted = "946684800 644\n946684800 755\n946684800 444\n"
    expect(bench.stdout(done), wanted, "times and modes of the inputs")


def _environment(bench: Bench) -> None:
    done = bench.python("import json, os; print(json.dumps(dict(os.environ)))", env={"A": "box"})
    found = json.loads(bench.stdout(done))
    wanted = {
        "A": "box",
        "HOME": "/work",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PWD": "/work",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "TZ": "UTC",
    }
    image = json.loads(bench.store.get_bytes(bench.image))["env"]
    expect(found, {**wanted, **image}, "the environment")


def _identity(bench: Bench) -> None:
    source = "import os, socket; print(os.getuid(), os.getgid(), oct(os.umask(0)), socket.gethostname())"
    expect(bench.stdout(bench.python(source)), "1000 1000 0o22 mrp\n", "user, group, umask and hostname")


def _privileges(bench: Bench) -> None:
    source = "print([l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapEff', 'NoNewPrivs'))])"
    expect(bench.stdout(bench.python(source)), "['0000000000000000', '1']\n", "effective capabilities and no_new_privs")


_REACHES = """
import socket, sys
def reaches(kind, address):
    with socket.socket(socket.AF_INET, kind) as s:
        s.settimeout(3)
        try: s.connect(address)
        except OSError: return False
        return True
if reaches(socket.SOCK_STREAM, ('127.0.0.1', int(sys.argv[1]))): print('the machine')
if reaches(socket.SOCK_DGRAM, ('192.0.2.1', 9)): print('a route to elsewhere')
"""


def _network(bench: Bench) -> None:
    with listening(b"") as (address, _):
        done = bench.run("python3", "-c", _REACHES, address.rpartition(":")[2])
    expect((done.exit_code, bench.stdout(done)), (0, ""), "what `network: none` lets a process reach")


def _wall(bench: Bench) -> None:
    done = bench.run("sh", "-c", 'trap "echo asked; exit 0" TERM; echo 1 > x; sleep 60 & wait', timeout=2)
    expect((done.exit_code, done.limit), (None, "wall"), "(exit code, limit) of what went over its time")
    expect(bench.stdout(done), "asked\n", "what it said when it was asked to end")
    expect(bench.files(done), {"x": "1\n"}, "what is kept of its work")


def _wall_ignored(bench: Bench) -> None:
    source = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    done = bench.python(source, timeout=2)
    expect((done.exit_code, done.limit), (None, "wall"), "(exit code, limit) of what ignored SIGTERM")


def _memory(bench: Bench) -> None:
    done = bench.python(f"import time\nx = bytearray({2 * LIMITS.memory})\ntime.sleep(5)")
    expect((done.exit_code, done.limit), (None, "memory"), "(exit code, limit) of what took too much memory")


def _pids(bench: Bench) -> None:
    source = "import os, time\nfor _ in range(200):\n    if os.fork() == 0: time.sleep(20); os._exit(0)"
    done = bench.python(source)
    expect((done.exit_code, done.limit), (None, "pids"), "(exit code, limit) of what started too many processes")


def _disk(bench: Bench) -> None:
    source = "for n in range(6): open(str(n), 'wb').write(bytes(10 * 2**20))"
    done = bench.python(source)
    expect(done.limit, "disk", "the limit of what wrote too much")
    expect(bench.files(done), {}, "what is kept of it")


def _secrets(bench: Bench) -> None:
    script = 'echo "it is $TOKEN"; echo "$TOKEN" >&2; echo "$TOKEN" > /work/kept'
    done = bench.run("sh", "-c", script, secrets={"TOKEN": "squeamish-ossifrage"})
    shown = (bench.stdout(done), bench.files(done)["kept"])
    expect(shown, ("it is [secret TOKEN]\n", "[secret TOKEN]\n"), "what is kept of a secret")
    if "squeamish" in bench.stderr(done):
        raise Broken("stderr was kept with the value of a secret")


_OPERATOR = """
import mrp.sdk
class Op(mrp.sdk.Agent):
    def run(self, task, ctx):
        (task.work / 'seen').write_text((task.dir / 'record.json').read_text())
        return mrp.sdk.Result(metrics={'seen': 1})
"""


def _operator(bench: Bench) -> None:
    done = bench.operator(_OPERATOR, {TASK: {"record.json": '{"id":"a"}'}, WORK: {}})
    expect((done.exit_code, bench.stderr(done)), (0, ""), "(exit code, stderr) of a Python operator")
    expect(bench.files(done), {"seen": '{"id":"a"}'}, "what it left")
    expect(json.loads(bench.files(done, OUT)["result.json"])["metrics"], {"seen": 1}, "its metrics")


_ASKS = """
import os, urllib.request
print(urllib.request.urlopen(os.environ['OPENAI_BASE_URL'] + '/models', timeout=20).read().decode())
"""
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nmodel"


def _endpoint(bench: Bench) -> None:
    with listening(_ANSWER, bench.scratch) as (address, heard):
        endpoint = Endpoint(address, "a-token")
        done = bench.python(_ASKS, endpoint=endpoint)
    expect((done.exit_code, bench.stdout(done)), (0, "model\n"), "what a process heard from its model")
    if not heard[0].startswith(endpoint.preface() + b"GET /v1/models HTTP/1.1\r\n"):
        raise Broken(f"a connection to the gateway began with {heard[0][:80]!r}")


def _many_at_once(bench: Bench) -> None:
    said: dict[int, str] = {}

    def one(number: int) -> None:
        said[number] = bench.stdout(bench.run("sh", "-c", f"echo {number} > f; sleep 0.2; cat f"))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect(said, {number: f"{number}\n" for number in range(4)}, "what four processes at once said")


def _nothing_left(bench: Bench) -> None:
    bench.run("sh", "-c", f"sleep {LEFT_RUNNING} & exit 0")
    expect(list(bench.owned()), [], "what is left of processes that ended")


CHECKS: tuple[Check[Bench], ...] = (
    Check("the exit code is the program's", _exit_code),
    Check("death by a signal is 128 and its number", _signal),
    Check("a missing program is the task's failure", _no_program),
    Check("stdout is kept", _stdout),
    Check("stderr is kept apart", _stderr),
    Check("logs are cut at 16 MiB", _long_log),
    Check("stdin is empty", _stdin),
    Check("outputs are kept, to the byte", _outputs),
    Check("processes share no folder", _fresh_folders),
    Check("inputs stand where the contract says", _inputs),
    Check("inputs and the system are read-only", _read_only),
    Check("times and modes of inputs are fixed", _times),
    Check("the environment is the declared one", _environment),
    Check("user, umask and hostname are fixed", _identity),
    Check("there are no privileges", _privileges),
    Check("network none reaches nothing", _network),
    Check("the wall limit asks, then ends", _wall),
    Check("the wall limit ends what does not listen", _wall_ignored),
    Check("memory is limited", _memory),
    Check("processes are limited", _pids),
    Check("disk is limited", _disk),
    Check("secrets are given and redacted", _secrets),
    Check("Python operators run", _operator),
    Check("the model is reached without a network", _endpoint),
    Check("several processes run at once", _many_at_once),
    Check("nothing is left behind", _nothing_left),
)
"""Every check, in the order in which they are run."""


def _ended(bench: Bench, script: str) -> tuple[int | None, str | None]:
    done = bench.run("sh", "-c", script)
    return done.exit_code, done.limit
