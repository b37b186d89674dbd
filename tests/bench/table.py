"""Lines of the result: what we measured beside what is to be beaten, and whether that is good enough."""
import statistics


def median(values):
    return statistics.median(values)


def format_us(us):
    if us >= 1e6:
        return f"{us / 1e6:.2f} s"
    if us >= 1e3:
        return f"{us / 1e3:.2f} ms"
    return f"{us:.1f} us"


def format_bytes(count):
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= size:
            return f"{count / size:.{1 if count / size < 100 else 0}f} {unit}"
    return f"{count:.0f} B"


def format_rate(bytes_per_second):
    return format_bytes(bytes_per_second) + "/s"


def format_share(share):
    return f"{share * 100:.1f} %"


def format_ratio(ratio):
    if 0 < ratio < 0.4:
        return f"1/{1 / ratio:.1f}" if ratio > 0.01 else f"1/{1 / ratio:.0f}"
    return f"{ratio:.2f}"


def format_limit(ratio):
    return f"1/{1 / ratio:.0f}" if ratio < 0.4 else f"{ratio:.2f}"


class Line:
    """One line of the table.

    @ours, @reference: the samples, one a run; the medians are shown, and the ratio is that of the medians. A
    reference that is a plain number is a limit that no program was measured for. @at_most or @at_least: the ratio
    that is wanted; neither: for comparison only. @form: makes a figure readable.
    """

    def __init__(self, name, what, ours, reference, against, form, at_most=None, at_least=None):
        self.name, self.what, self.against, self.form = name, what, against, form
        self.runs = {"ours": ours, "reference": reference if isinstance(reference, list) else [reference]}
        self.ours, self.reference = median(self.runs["ours"]), median(self.runs["reference"])
        self.ratio = self.ours / self.reference if self.reference else float("inf")
        self.at_most, self.at_least = at_most, at_least

    @property
    def met(self):
        """None: nothing is wanted."""
        if self.at_most is not None:
            return self.ratio <= self.at_most
        return self.ratio >= self.at_least if self.at_least is not None else None

    @property
    def wanted(self):
        if self.at_most is not None:
            return f"<= {format_limit(self.at_most)}"
        return f">= {format_limit(self.at_least)}" if self.at_least is not None else ""

    def cells(self):
        return [self.what, self.form(self.ours), f"{self.form(self.reference)}  {self.against}",
                format_ratio(self.ratio), self.wanted, {True: "yes", False: "NO", None: ""}[self.met]]

    def as_object(self):
        return {"row": self.name, "what": self.what, "against": self.against, "ours": self.ours,
                "reference": self.reference, "ratio": self.ratio, "at-most": self.at_most,
                "at-least": self.at_least, "met": self.met, "runs": self.runs}


HEAD = ["", "ours", "reference", "ratio", "wanted", "met"]


def print_table(lines):
    rows = [HEAD] + [line.cells() for line in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
