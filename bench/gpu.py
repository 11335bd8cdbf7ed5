"""Every check and benchmark that waits for a GPU, in one command.

    python -m bench.gpu                                 # all parts, on the GPU here; each ends within ten minutes
    python -m bench.gpu --parts kernel,decode-0.6B      # some of them
    python -m bench.gpu --toy                           # toy shapes on the CPU: whether it runs, and no figure of a GPU

Each part (`bench/gpu_parts.py`) runs in a process of its own: one that fails, hangs or lacks memory says so in a line,
and the next begins with an empty GPU. What a finished part found is kept in `--out`, with the GPU and the versions that
it was found with, and is not measured again; a part that failed is. `--out` then holds

    rows.json        the rows of all parts
    tables.md        the same as Markdown, for bench/RESULTS.md and docs/scaling.md
    NAME.log         what a part printed, its traceback included

Left out: several GPUs, real weights, and anything estimated: without a GPU there is no row of one.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench.gpu_parts import PARTS, TABLES, Place
from harness.modeldir import write_json

LIMIT = 600  # seconds of a part
ROW = "row: "  # begins the line in which a part hands over a row; libraries print others


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def device_name() -> str:
    """The GPU's name, asked for in a process of its own: this one takes none of its memory."""
    ask = "import torch; print(torch.cuda.get_device_name())"
    return subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def conditions(toy: bool) -> dict[str, str]:
    """What decides a figure: rows of other conditions are never mixed."""
    packages = ("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy")
    device = "toy shapes on the CPU, no figures of a GPU" if toy else device_name()
    cuda = {} if toy else {"CUDA": str(torch.version.cuda)}
    return {"device": device, **cuda, "Python": platform.python_version(), **{p: installed(p) for p in packages}}


class Results:
    """The rows of all parts, on the disk after each of them."""

    def __init__(self, out: Path, found_with: dict[str, str]):
        """ValueError if `out` holds rows that were found with something else."""
        self.path, self.content = out / "rows.json", {"conditions": found_with, "parts": {}}
        if self.path.exists():
            self.content = json.loads(self.path.read_text(encoding="utf-8"))
            before = self.content["conditions"]
            if different := [name for name in found_with if before.get(name) != found_with[name]]:
                told = "; ".join(f"{name} was {before.get(name)}, is {found_with[name]}" for name in different)
                raise ValueError(f"{self.path}: {told}; --out names another directory")

    def is_finished(self, part: str) -> bool:
        return self.content["parts"].get(part, {}).get("error") == ""

    def keep(self, part: str, rows: list, error: str, seconds: float) -> None:
        self.content["parts"][part] = {"error": error, "seconds": round(seconds, 1), "rows": rows}
        write_json(self.path, self.content)
        self.path.with_name("tables.md").write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """All rows, table by table, under the page that they are for; what failed is told behind them."""
        lines = [", ".join(f"{name} {value}" for name, value in self.content["conditions"].items()), ""]
        rows = [row for part in PARTS for row in self.content["parts"].get(part, {}).get("rows", [])]
        for name, (page, title, columns) in TABLES.items():
            if mine := [cells for table, cells in rows if table == name]:
                lines += [
                    f"**{title}** (for {page})",
                    "",
                    "| " + " | ".join(columns) + " |",
                    "|---" * len(columns) + "|",
                ]
                lines += ["| " + " | ".join(cells) + " |" for cells in mine] + [""]
        failed = {name: part["error"] for name, part in self.content["parts"].items() if part["error"]}
        return "\n".join([*lines, *(f"{name}: {error}" for name, error in failed.items())]).rstrip() + "\n"


def run(part: str, toy: bool, limit: float, log: Path) -> tuple[list, str]:
    """(rows, "" or what went wrong in a line) of a part in a process of its own. Rows found before an error count."""
    command = [sys.executable, "-m", "bench.gpu", "--alone", part, *["--toy"] * toy]
    # the interpreter runs the kernel where there is no GPU; Triton reads the variable when it is imported
    environment = {**os.environ, "TRITON_INTERPRET": "1"} if toy else os.environ
    error = ""
    with open(log, "w", encoding="utf-8") as file:
        try:
            code = subprocess.run(command, stdout=file, stderr=file, env=environment, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            code, error = None, f"stopped after {limit:.0f} s"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [json.loads(line.removeprefix(ROW)) for line in lines if line.startswith(ROW)]
    if code:
        said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")
        error = f"ended by signal {-code}" if code < 0 else said[:200]
    return rows, f"{error}; {log} has all of it" if error else ""


def alone(part: str, place: Place) -> None:
    """What the part's own process does: print each row as it is found."""
    try:
        for table, cells in PARTS[part](place):
            print(ROW + json.dumps([table, cells]), flush=True)
    except torch.OutOfMemoryError as error:
        print(error, flush=True)
        sys.exit(f"out of memory: {torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB are not enough")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"separated by commas, of {', '.join(PARTS)}")
    parser.add_argument("--out", default="gpu-day", help="directory of rows, tables and logs")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds after which a part is stopped")
    parser.add_argument("--toy", action="store_true", help="toy shapes on the CPU")
    parser.add_argument("--alone", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not (args.toy or torch.cuda.is_available()):
        parser.error("torch finds no GPU here; --toy runs all parts on the CPU, at toy shapes")
    if args.alone:
        alone(args.alone, Place("cpu" if args.toy else "cuda", args.toy))
        return
    wanted = args.parts.split(",")
    if unknown := [part for part in wanted if part not in PARTS]:
        parser.error(f"--parts {unknown[0]}: there are {', '.join(PARTS)}")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        results = Results(out, conditions(args.toy))
    except ValueError as error:
        parser.error(str(error))
    for part in wanted:
        if results.is_finished(part):
            print(f"{part}: finished before, not run again")
            continue
        start = time.perf_counter()
        rows, error = run(part, args.toy, args.limit, out / f"{part}.log")
        seconds = time.perf_counter() - start
        results.keep(part, rows, error, seconds)
        print(f"{part}: {f'failed: {error}' if error else f'{len(rows)} rows in {seconds:.0f} s'}", flush=True)
    print(f"\n{results.markdown()}\nwritten to {out}")
    if not all(map(results.is_finished, wanted)):
        sys.exit(1)


if __name__ == "__main__":
    main()
