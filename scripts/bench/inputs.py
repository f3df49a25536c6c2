"""Inputs of the workloads, the same for the same seed on every machine, made once below target/bench/inputs."""

import io
import random
import subprocess
import tarfile

SEED = 20
WORDS = "let match self return struct impl for while if else use pub mod fn value offset length buffer error state".split()
NEEDLE = "xyzzy_needle"


def source_tree(directory, files):
    """A tar of `files` files that look like a source tree: about 18 KB on average, most of them far smaller."""
    path = directory / f"tree-{files}.tar"
    if path.exists():
        return path
    rng = random.Random(SEED)
    text = " ".join(rng.choice(WORDS) + ("\n" if rng.random() < 0.1 else "") for _ in range(1 << 18)).encode()
    with tarfile.open(path.with_suffix(".part"), "w") as tar:
        for n in range(files):
            size = min(int(rng.lognormvariate(8.5, 1.6)), 2 << 20)
            begin = rng.randrange(len(text))
            data = (text[begin:] + text * (size // len(text) + 1))[:size]
            if n % 500 == 0:
                data += NEEDLE.encode()
            info = tarfile.TarInfo(f"tree/{n % 40:02}/{n % 600:03}/file{n}.rs")
            info.size, info.mtime = len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
    path.with_suffix(".part").rename(path)
    return path


def alignments(directory, reads):
    """A BAM of `reads` unsorted alignments of 100 bases."""
    path = directory / f"reads-{reads}.bam"
    if path.exists():
        return path
    rng = random.Random(SEED)
    bases = "".join(rng.choices("ACGT", k=1 << 20))
    view = subprocess.Popen(["samtools", "view", "-b", "-o", path.with_suffix(".part"), "-"], stdin=subprocess.PIPE)
    lines = ["@HD\tVN:1.6\tSO:unsorted\n@SQ\tSN:chr1\tLN:100000000\n"]
    for n in range(reads):
        begin = rng.randrange(len(bases) - 200)
        quality = bases[begin + 100 : begin + 200]
        lines.append(f"r{n}\t0\tchr1\t{rng.randrange(1, 99_999_000)}\t60\t100M\t*\t0\t0\t{bases[begin:begin + 100]}\t{quality}\n")
    view.communicate("".join(lines).encode())
    if view.returncode:
        raise RuntimeError("samtools view failed")
    path.with_suffix(".part").rename(path)
    return path


def crate(directory, modules):
    """A crate of `modules` modules without dependencies."""
    root = directory / f"crate-{modules}"
    if (root / "Cargo.toml").exists():
        return root
    (root / "src").mkdir(parents=True, exist_ok=True)
    for n in range(modules):
        structs = "\n".join(
            f"""#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct S{k} {{ pub a: u64, pub b: String, pub c: Vec<Option<u32>> }}
pub fn f{k}(x: u64) -> String {{ let s = S{k} {{ a: x, b: format!("{{x:?}}"), c: vec![Some({k}); 3] }}; format!("{{s:?}}") }}"""
            for k in range(10)
        )
        (root / f"src/m{n}.rs").write_text(structs)
    calls = "".join(f"    println!(\"{{}}\", m{n}::f3({n}));\n" for n in range(modules))
    mods = "".join(f"mod m{n};\n" for n in range(modules))
    (root / "src/main.rs").write_text(f"#![allow(dead_code)]\n{mods}fn main() {{\n{calls}}}\n")
    # A workspace of its own: it lies inside that of runseal.
    (root / "Cargo.toml").write_text('[package]\nname = "bench"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n')
    return root
