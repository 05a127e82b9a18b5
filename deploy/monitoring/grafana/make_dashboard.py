"""Makes the dashboard of the panels in panels.py; `make dashboard` writes it to dashboards/serpentine.json."""

from __future__ import annotations

from itertools import count

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableOption, VariableRefresh, VariableSort
from panels import ROWS, Panel

SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")


def build() -> str:
    """The dashboard as JSON."""
    board = (
        dashboard.Dashboard("Serpentine")
        .uid("serpentine")
        .description("Multimodal state-space models, served. Made by deploy/monitoring/grafana/make_dashboard.py.")
        .tags(["serpentine"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .with_variable(variable("instance", "serpentine_engine_up"))
        .with_variable(variable("model", "serpentine_state_slots"))
    )
    number = count(1)
    for title, panels in ROWS.items():
        board = board.with_row(dashboard.Row(title).id(next(number)))
        for panel in panels:
            drawn = figure(panel) if panel.figure else lines(panel)
            board = board.with_panel(drawn.id(next(number)))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build())


def variable(label: str, name: str) -> dashboard.QueryVariable:
    """A choice among a label's values, all of them at first."""
    return (
        dashboard.QueryVariable(label)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({name}, {label})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all"))
    )


def figure(panel: Panel) -> stat.Panel:
    """One number."""
    (query,) = panel.queries.values()
    return (
        stat.Panel()
        .title(panel.title)
        .description(panel.text)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(6)
        .orientation(VizOrientation.AUTO)
        .with_target(prometheus.Dataquery().expr(query).datasource(SOURCE).ref_id("A").range())
    )


def lines(panel: Panel) -> timeseries.Panel:
    """Lines over time, or areas that add up."""
    drawn = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.text)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .span(panel.width)
        .height(6 if panel.width > 8 else 8)
        .fill_opacity(20 if panel.stacked else 0)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL if panel.stacked else StackingMode.NONE))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    for letter, (legend, query) in zip("ABCDEF", panel.queries.items(), strict=False):
        target = prometheus.Dataquery().expr(query).legend_format(legend).datasource(SOURCE).ref_id(letter).range()
        drawn = drawn.with_target(target)
    return drawn


if __name__ == "__main__":
    print(build())
