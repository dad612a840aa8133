"""The pictures of a study, as Plotly figures."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import optuna
import plotly.colors
import plotly.graph_objects as go
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection

from spark_ray.training.search.records import Objective, Study, TrialRecord
from spark_ray.training.search.space import Choice, FloatRange, Parameter

_COLOURS = {"finished": "#2f6fde", "stopped": "#d9822b", "failed": "#c9372c", "running": "#8a63d2"}
_BEST = "#7a8290"
_LEAST_FOR_IMPORTANCE = 10


def history(studies: Sequence[Study]) -> go.Figure:
    """What each study had found after so many steps of training, of all its trials together."""
    figure = go.Figure()
    several = len(studies) > 1
    for study in studies:
        objective = study.objectives[0]
        steps = 0
        spent: list[int] = []
        best: list[float] = []
        dots: dict[str, list[tuple[int, float, str]]] = defaultdict(list)
        for trial in study.trials:
            steps += trial.steps
            value = trial.value(objective)
            if value is None:
                continue
            spent.append(steps)
            best.append(value if not best else objective.better(best[-1], value))
            group = f"{study.name}: trials" if several else trial.state
            dots[group].append((steps, value, _label(trial, objective)))
        for group, of_group in dots.items():
            x, y, labels = zip(*of_group, strict=True)
            figure.add_scatter(
                x=x,
                y=y,
                mode="markers",
                text=labels,
                name=group,
                marker={"color": _COLOURS.get(group), "size": 9},
                hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
            )
        figure.add_scatter(
            x=spent,
            y=best,
            mode="lines",
            line={"shape": "hv"} if several else {"shape": "hv", "color": _BEST},
            name=f"{study.name}: best" if several else "best so far",
        )
    figure.update_xaxes(title="steps of all trials so far")
    figure.update_yaxes(title=studies[0].objectives[0].metric)
    return figure


def learning_curves(study: Study) -> go.Figure:
    """The objective of every trial over its steps."""
    figure, objective = go.Figure(), study.objectives[0]
    for trial in study.trials:
        points = [r for r in trial.reports if objective.metric in r.metrics]
        # The last report of a run that ended tells its best checkpoint again.
        steps = {r.step: r.metrics[objective.metric] for r in reversed(points)}
        if not steps:
            continue
        figure.add_scatter(
            x=sorted(steps),
            y=[steps[step] for step in sorted(steps)],
            mode="lines+markers",
            name=f"trial {trial.number}",
            line={"color": _COLOURS[trial.state], "width": 1.5},
            marker={"size": 4},
            opacity=0.8,
            hovertemplate=f"{_label(trial, objective)}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
        )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=objective.metric)
    return figure


def parallel_coordinates(study: Study) -> go.Figure | None:
    """Every trial as a line through its parameters; None where there is nothing to compare.

    Plotly's own needs WebGL, which browsers on virtual machines and far desktops lack.
    """
    objective, space = study.objectives[0], study.record.config.space
    trials = study.ranked()
    if len(trials) < 2:
        return None
    values = [trial.value(objective) or 0.0 for trial in trials]
    points = [trial.params_at_best(objective) for trial in trials]
    heights = [_heights(values, min(values), max(values))]
    ends = [(f"{min(values):.4g}", f"{max(values):.4g}")]
    for path, parameter in space.items():
        column = [point[path] for point in points]
        heights.append(_parameter_heights(parameter, column))
        ends.append((_short(parameter.ends()[0]), _short(parameter.ends()[-1])))
    shades = plotly.colors.sample_colorscale(
        "Viridis", _heights(range(len(trials)), 0, len(trials) - 1)
    )
    figure = go.Figure()
    lines = zip(trials, shades, zip(*heights, strict=True), strict=True)
    for trial, shade, column in reversed(list(lines)):  # the best lies on top
        figure.add_scatter(
            x=list(range(len(column))),
            y=column,
            mode="lines",
            line={"color": shade, "width": 2},
            hovertemplate=f"{_label(trial, objective)}<extra></extra>",
        )
    names = [objective.metric, *space]
    for place, (low, high) in enumerate(ends):
        for height, text, side in ((0, low, "top"), (1, high, "bottom")):
            figure.add_annotation(x=place, y=height, text=text, showarrow=False, yanchor=side)
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names)
    figure.update_yaxes(visible=False, range=[-0.12, 1.12])
    return figure.update_layout(showlegend=False)


def _parameter_heights(parameter: Parameter, values: Sequence[Any]) -> list[float]:
    """Where values stand on their axis, from 0 to 1."""
    if isinstance(parameter, Choice):
        labels = parameter.ends()
        return _heights([labels.index(value) for value in values], 0, len(labels) - 1)
    low, high = float(parameter.min), float(parameter.max)
    if not parameter.log:
        return _heights(values, low, high)
    return _heights([math.log(value) for value in values], math.log(low), math.log(high))


def _heights(values: Iterable[float], low: float, high: float) -> list[float]:
    return [(value - low) / ((high - low) or 1.0) for value in values]


def importances(study: Study) -> dict[str, float]:
    """Each parameter's share in what set the best trials apart; empty where too few say so.

    Source: Watanabe, Bansal, Hutter, PED-ANOVA: Efficiently Quantifying Hyperparameter Importance
    in Arbitrary Subspaces, 2023.
    """
    found = _as_optuna(study)
    if len(found.trials) < _LEAST_FOR_IMPORTANCE or len({t.value for t in found.trials}) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(found, evaluator=evaluator)


def importance_bars(shares: dict[str, float]) -> go.Figure:
    names = sorted(shares, key=lambda name: shares[name])
    figure = go.Figure(
        go.Bar(
            x=[shares[name] for name in names],
            y=names,
            orientation="h",
            marker={"color": _COLOURS["finished"]},
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.update_xaxes(title="share of the differences", tickformat=".0%", range=[0, 1])
    figure.update_yaxes(automargin=True)
    return figure


def pareto(study: Study) -> go.Figure | None:
    """Trials by the first two objectives; None where there is but one."""
    if len(study.objectives) < 2:
        return None
    one, two = study.objectives[:2]
    front = {trial.trial_id for trial in study.pareto_front()}
    figure = go.Figure()
    for name, inside, colour in (
        ("others", False, _COLOURS["stopped"]),
        ("Pareto front", True, _COLOURS["finished"]),
    ):
        chosen = [t for t in study.ranked() if (t.trial_id in front) is inside]
        figure.add_scatter(
            x=[trial.value(one) for trial in chosen],
            y=[trial.value(two) for trial in chosen],
            text=[_label(trial, one) for trial in chosen],
            mode="markers",
            name=name,
            marker={"color": colour, "size": 9},
            hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        )
    figure.update_xaxes(title=f"{one.metric} ({one.mode})")
    figure.update_yaxes(title=f"{two.metric} ({two.mode})")
    return figure


def _as_optuna(study: Study) -> optuna.Study:
    """The trials that came to a value, by the first objective and so that lower is better."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = optuna.create_study(direction=StudyDirection.MINIMIZE)
    objective, space = study.objectives[0], study.record.config.space
    distributions = {path: _distribution(parameter) for path, parameter in space.items()}
    for trial in study.ranked():
        params, value = trial.params_at_best(objective), trial.value(objective)
        assert value is not None
        found.add_trial(
            optuna.trial.create_trial(
                params={path: _inside(space[path], params[path]) for path in space},
                distributions=distributions,
                value=objective.sign * value,
            )
        )
    return found


def _inside(parameter: Parameter, value: Any) -> Any:
    """Steps of a range may round to just beyond its end."""
    return value if isinstance(parameter, Choice) else parameter.clip(value)


def _distribution(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.ends())
    if isinstance(parameter, FloatRange):
        return FloatDistribution(parameter.min, parameter.max, log=parameter.log)
    return IntDistribution(parameter.min, parameter.max, log=parameter.log)


def _label(trial: TrialRecord, objective: Objective) -> str:
    given = trial.params_at_best(objective)
    params = "<br>".join(f"{path} = {_short(value)}" for path, value in given.items())
    return f"trial {trial.number} ({trial.state})<br>{params}"


def _short(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return str(value).replace("<", "&lt;")
