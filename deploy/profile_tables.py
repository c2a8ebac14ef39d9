"""Tables that say what share of the time every part of a role takes, and what it manages."""

from collections.abc import Iterable, Mapping

from rich.table import Table


def shares_table(title: str, shares: Mapping[str, float], rows: Iterable[tuple[str, str]]) -> Table:
    """Shares of the time, the largest first, then what else there is to say."""
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("share of the time", justify="right")
    for name, share in sorted(shares.items(), key=lambda entry: -entry[1]):
        table.add_row(name, f"{share:.1%}")
    table.add_section()
    for row in rows:
        table.add_row(*row)
    return table


def rate_rows(what: str, per_second: float, per_cpu_second: float) -> tuple[tuple[str, str], tuple[str, str]]:
    """A rate by the clock and by the processor; on a busy machine the second says what it could do."""
    digits = ",.0f" if per_second >= 100 else ",.1f"
    return (
        (f"{what}/s", format(per_second, digits)),
        (f"{what}/s of processor time", format(per_cpu_second, digits)),
    )
