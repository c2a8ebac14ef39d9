"""What a dashboard consists of here, and how it becomes Grafana's JSON."""

# Only who changes dashboards needs the SDK: everybody else checks types without it.
# pyright: reportMissingImports=false, reportUnknownParameterType=false

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    VariableRefresh,
)

TAG = "zero"
DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_OURS = re.compile(r"\b(?P<name>(?:zero_|grpc_server_|process_(?!id\b))\w+|up)\b(?P<brace>\{)?")
_WIDTH = 8  # of 24 columns
_HEIGHT = 8


@dataclass(frozen=True)
class Query:
    """One PromQL expression with the name of its lines.

    Attributes:
        expression: without the run, which the dashboard's variable adds to every metric of ours.
        legend: may hold {{label}}.
    """

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """What answers one question.

    Attributes:
        title: the question, short.
        unit: of Grafana's: "short", "s", "bytes", "percentunit".
        queries: drawn together.
        text: what a good picture looks like, or what the figures mean.
        is_number: the newest value, large, instead of lines over time.
        is_stacked: lines on top of each other.
    """

    title: str
    unit: str
    queries: Sequence[Query]
    text: str = ""
    is_number: bool = False
    is_stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Board:
    """One dashboard.

    Attributes:
        name: of its file and in its address, which must not change.
        title: as listed.
        text: what it is for.
        rows: from top to bottom.
        chooses_run: whether it shows the run that is chosen; Ray's metrics belong to none.
    """

    name: str
    title: str
    text: str
    rows: Sequence[Row]
    chooses_run: bool = True


def quantiles(metric: str, name: str = "", by: str = "") -> tuple[Query, ...]:
    """The median and the slowest hundredth of a histogram."""
    labels = f"le, {by}" if by else "le"
    prefix = f"{name} " if name else ""
    return tuple(
        Query(f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))", prefix + legend)
        for q, legend in ((0.5, "p50"), (0.99, "p99"))
    )


def of_run(expression: str) -> str:
    """Keep an expression to the run that the dashboard's variable names."""

    def restrict(match: re.Match[str]) -> str:
        return f'{match["name"]}{{job=~"$job"' + (", " if match["brace"] else "}")

    return _OURS.sub(restrict, expression)


def to_json(board: Board) -> str:
    """The dashboard as Grafana reads it from a file."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(f"zero-{board.name}")
        .description(board.text)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            dashboard.DashboardLink("Zero")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    if board.chooses_run:
        builder = builder.with_variable(
            dashboard.QueryVariable("job")
            .label("Run")
            .query("label_values(zero_replay_store_available, job)")
            .datasource(DATASOURCE)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(True)
            .all_value(".+")
        )
    for row in board.rows:
        builder = builder.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            builder = builder.with_panel(_number(panel) if panel.is_number else _lines(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(builder.build()) + "\n"


def _lines(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.text)
        .unit(panel.unit)
        .datasource(DATASOURCE)
        .span(_WIDTH)
        .height(_HEIGHT)
        .fill_opacity(30 if panel.is_stacked else 8)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.is_stacked:
        built = built.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for letter, query in zip(ascii_uppercase, panel.queries, strict=False):
        built = built.with_target(_target(letter, query))
    return built


def _number(panel: Panel) -> stat.Panel:
    built = (
        stat.Panel()
        .title(panel.title)
        .description(panel.text)
        .unit(panel.unit)
        .datasource(DATASOURCE)
        .span(_WIDTH // 2)
        .height(_HEIGHT // 2)
        .color_mode(BigValueColorMode.NONE)
    )
    for letter, query in zip(ascii_uppercase, panel.queries, strict=False):
        built = built.with_target(_target(letter, query))
    return built


def _target(letter: str, query: Query) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(letter).expr(of_run(query.expression)).legend_format(query.legend)
