"""What gpu_step and gpu_peers printed, as tables with the figures asked for, a picture, and the launch plan's tables as
they would be fitted to it."""

import argparse
import json
from pathlib import Path

from harness import Table, bound

KERNELS = {"binary": "b", "rows": "r", "tile": "t"}
MIB = 1 << 20


def read(paths):
    lines = [json.loads(line) for path in paths for line in Path(path).read_text().splitlines() if line.startswith("{")]
    return {section: [line for line in lines if line["section"] == section] for section in {x["section"] for x in lines}}


def shape(line):
    return f"{line['num_sequences']:,}", f"{line['mean']:,}", f"{line['tokens']:,}"


def floor_us(line):
    return min(line["us"]["empty_and_sync"], line["us"]["flag"])


def bytes_a_token(line):
    return 8 if line["outputs"] == 2 else 28


def host_limit(line):
    if line["outputs"] != 2:
        return None
    if line["tokens"] <= 1.1 * 1024:
        return 1.25 if line["num_sequences"] <= 16 else 1.35 if line["num_sequences"] == 64 else None
    return 1.7 if 14_000 <= line["tokens"] <= 18_000 else None


def host_to_host(found):
    print("\n## Host to host\n\nLengths in the host's memory, arrays there too; beside the floor: a kernel that sets one flag that the host "
          "spins on, or an empty one and a synchronisation, whichever was quicker.\n")
    copies = sorted((line["bytes"], line["us"]["device_to_host"]) for line in found["bandwidth"])
    rate = max(size / us for size, us in copies)  # bytes a microsecond
    table = Table("sequences", "mean", "tokens", "outputs", "floor us", "plan us", "of the floor", "GB/s",
                  "of a copy's from the device", "CPU us")
    for line in found["host_to_host"]:
        us, limit = line["us"]["plan"], host_limit(line)
        ratio = us / floor_us(line)
        size = line["tokens"] * bytes_a_token(line)
        share = size / us / rate
        table.row(*shape(line), str(line["outputs"]), floor_us(line), us, bound(ratio, limit, at_most=True) if limit else ratio,
                  size / us / 1e3,
                  bound(share, 0.9, at_most=False) if line["tokens"] >= 1 << 20 and line["outputs"] == 2 else share,
                  line["us"]["cpu"])
    crossing = min((line["tokens"] for line in found["host_to_host"]
                    if line["outputs"] == 2 and line["us"]["plan"] < line["us"]["cpu"]), default=None)
    print(f"\nFewest tokens for which the card was quicker than one core of its host: {crossing:,}" if crossing else
          "\nOne core of its host was quicker throughout.")


def device_to_device(found):
    print("\n## Device to device, in a graph\n\nThe kernels alone, over lengths and sums that are there; `write` stores as many bytes as the "
          "arrays with a value a token take.\n")
    table = Table("sequences", "mean", "tokens", "outputs", "linear us", "binary us", "rows us", "tile us", "plan us", "plan / best",
                  "write us", "plan / write")
    for line in found["device_to_device"]:
        us = line["us"]
        best = min(us[name] for name in KERNELS)
        of_write = us["plan"] / us["write"]
        table.row(*shape(line), str(line["outputs"]), us.get("linear", float("nan")), *(us[name] for name in KERNELS), us["plan"],
                  bound(us["plan"] / best, 1.25, at_most=True), us["write"],
                  bound(of_write, 1.25, at_most=True) if line["tokens"] >= 4_000_000 and line["outputs"] == 2 else of_write)
    if "between" in found:
        print("\nBetween the shapes that the plan's table has entries for:\n")
        table = Table("sequences", "mean", "tokens", "binary us", "rows us", "tile us", "plan us", "plan / best")
        for line in found["between"]:
            us = line["us"]
            best = min(us[name] for name in KERNELS)
            table.row(*shape(line), *(us[name] for name in KERNELS), us["plan"], bound(us["plan"] / best, 1.15, at_most=True))
    print("\nNine outputs beside two, per byte written:\n")
    pairs = {}
    for line in found["device_to_device"]:
        if line["tokens"] >= MIB:
            pairs.setdefault(shape(line), {})[line["outputs"]] = line["us"]["plan"] / bytes_a_token(line)
    table = Table("sequences", "mean", "tokens", "ratio")
    for key, by in pairs.items():
        table.row(*key, bound(by[9] / by[2], 1.3, at_most=True))


def from_lengths(found):
    print("\n## From lengths on the device, beside the founding kernels\n\nTwo outputs; launched and waited for, the founding prefix sum "
          "counted: ours by FillDraftExtendMetadata, theirs by cudaStreamSynchronize; ours with that too; and in a graph.\n")
    table = Table("sequences", "mean", "tokens", "plan us", "founding us", "times as fast", "plan us, synchronize", "times as fast", "plan us, graph",
                  "founding us, graph", "times as fast")
    for line in found["from_lengths"]:
        us = line["us"]
        limit = 1.5 if line["num_sequences"] > 16 else 1.0
        table.row(*shape(line), us["plan"], us["founding"], bound(us["founding"] / us["plan"], limit, at_most=False),
                  us["plan_and_synchronize"], us["founding"] / us["plan_and_synchronize"], us["plan_in_graph"], us["founding_in_graph"], us["founding_in_graph"] / us["plan_in_graph"])


def lanes(found):
    rates = {line["lanes"]: line["batches_per_s"] for line in found["lanes"]}
    print("\n## Lanes\n\n64 sequences, 1,024 tokens, a thread a lane.\n")
    table = Table("lanes", "batches/s", "times one lane's")
    for count, rate in rates.items():
        times = rate / rates[1]
        table.row(str(count), f"{rate:,.0f}", bound(times, 4, at_most=False) if count == 8 else times)


def peers(found):
    if "peers" not in found:
        return
    print(f"\n## PyTorch peers\n\nThe same arrays on the device, launched and waited for; torch {found['software'][0]['torch']}, Triton "
          f"{found['software'][0]['triton']}; how many times as long as FillDraftExtendMetadataAdaptive, in a program of its own, in turn with them.\n")
    limits = {"plain": 25, "triton": 3.5, "founding_extension": 2}
    names = [name for name in found["peers"][0]["us"] if name != "fill"]
    table = Table("sequences", "tokens", "ours us", *names)
    for line in found["peers"]:
        us = line["us"]["fill"]
        cells = []
        for name in names:
            times = line["us"][name] / us
            asked = name in limits and (name != "plain" or line["num_sequences"] >= 16)
            cells.append(f"{line['us'][name]:.0f} us, " + (bound(times, limits[name], at_most=False) if asked else f"{times:.1f}"))
        table.row(f"{line['num_sequences']:,}", f"{line['tokens']:,}", us, *cells)


def from_python(found):
    if "local" not in found:
        return
    print("\n## From Python\n\n`nsa_metadata.local.fill_draft_extend_metadata_adaptive`, which waits by itself, into arrays that are there, and how "
          "many times as long others take for the same, with the current stream's synchronize(): plain Python, which makes its arrays; the "
          "Triton kernel and the founding extension into the same arrays. Beside it: with synchronize=False and "
          "that synchronize(), with arrays made for each call, and that synchronize() alone.\n")
    limits = {"plain": 10, "triton": 2, "founding_extension": 1.5}
    table = Table("sequences", "tokens", "local us", *limits, "launched us", "the founding extension of that", "made us", "synchronize us")
    for line in found["local"]:
        us = line["us"]
        cells = [bound(us[name] / us["local"], least, at_most=False) for name, least in limits.items()]
        table.row(f"{line['num_sequences']:,}", f"{line['tokens']:,}", us["local"], *cells, us["local_launched"], us["founding_extension"] / us["local_launched"], us["local_made"], us["synchronize"])


def fitted(lines, kernel_of):
    """A letter for each shape measured; the last one of a line stands for what was too large to be measured."""
    rows = {}
    for line in lines:
        rows.setdefault(line["num_sequences"], {})[line["mean"]] = kernel_of(line)
    means = sorted({mean for row in rows.values() for mean in row})
    out = []
    for _, row in sorted(rows.items()):
        letters, last = "", "b"
        for mean in means:
            last = row.get(mean, last)
            letters += last
        out.append(letters)
    return out


def plan(found):
    print("\n## The plan, fitted to this (kernels/launch_plan.cc)\n")

    def device(line):
        return KERNELS[min(KERNELS, key=lambda name: line["us"][name])]

    def host(line):
        return KERNELS[min(("binary", "rows"), key=lambda name: line["us"][f"{name}_inline"])]

    for name, section, kernel_of in (("kToDevice", "device_to_device", device), ("kToHost", "host_to_host", host)):
        for outputs, suffix in ((2, "FirstTwo"), (9, "All")):
            letters = fitted([line for line in found[section] if line["outputs"] == outputs], kernel_of)
            print(f"    constexpr Table {name}{suffix} = {{" + ", ".join(f'"{row}"' for row in letters) + "};")


def plot(found, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5))
    for section, axis, title in (("host_to_host", axes[0], "host to host"), ("device_to_device", axes[1], "device to device, in a graph")):
        for num_sequences in (1, 16, 256, 4096, 65536):
            points = sorted((line["tokens"], line["us"]["plan"]) for line in found[section]
                            if line["outputs"] == 2 and line["num_sequences"] == num_sequences)
            axis.plot(*zip(*points), marker="o", label=f"{num_sequences:,} sequences")
        lines = sorted((line["tokens"], floor_us(line) if section == "host_to_host" else line["us"]["write"])
                       for line in found[section] if line["outputs"] == 2)
        axis.plot(*zip(*lines), color="black", linewidth=1, label="floor" if section == "host_to_host" else "the same bytes stored")
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="us", title=f"{title}, two outputs")
        axis.grid(True, alpha=0.3)
        axis.legend()
    figure.suptitle(found["card"][0]["name"])
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", nargs="+", help="what gpu_step and gpu_peers printed")
    parser.add_argument("--plot", help="a PNG to draw")
    flags = parser.parse_args()
    found = read(flags.measured)
    print(f"# The GPU step on an {found['card'][0]['name']}\n\nMedians; what a line compares was measured in turn.")
    for part in (host_to_host, device_to_device, from_lengths, lanes, peers, from_python, plan):
        part(found)
    if flags.plot:
        plot(found, flags.plot)


if __name__ == "__main__":
    main()
