"""The command line: `zero train` runs everything, the other commands run one role each."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# What brings torch, Ray or numba is imported by the commands that need it: `zero --help` must not wait for them.
from deploy.errors import BAD_INPUT, DeployError
from deploy.experiment_files import config_to_toml, load_experiment
from deploy.interrupts import INTERRUPTED, run_until_interrupted
from deploy.json_text import json_text
from deploy.launchers import mlflow, ray, tensorboard
from deploy.options import (
    Application,
    AsJson,
    ClientTokenFile,
    Experiment,
    Inference,
    MlflowUri,
    Overrides,
    PlaintextToken,
    ReplayAddress,
    Root,
    SinkNames,
    StatisticsFile,
    TlsCa,
    TlsName,
    complete_run,
    latest_or_best,
)
from deploy.placement import parse_placements
from deploy.profile_commands import profile as profile_commands
from deploy.replay_commands import replay
from deploy.resume import RunRequest, choose_run, find_run
from deploy.roles import Assignment, Role, check_experiment, run_role
from deploy.run_commands import export, play
from deploy.run_context import DEFAULT_APPLICATION, DEFAULT_ROOT, RunContext
from deploy.run_folder import locked, open_or_create_run_folder
from deploy.run_records import RunState
from deploy.runs_commands import runs, scale, status, stop
from deploy.serve_command import serve_agent
from deploy.statistics_commands import statistics
from deploy.watch_command import watch
from replay_server.command import (
    Insecure,
    LogLevel,
    MetricsPort,
    RedisUrl,
    RedisUrlFile,
    TlsCertificate,
    TlsClientCa,
    TlsKey,
    TokenFile,
    as_one_line,
    log_to_stderr,
    refuse_two_urls,
    serve,
)
from replay_server.credentials import Credentials, SecuritySettings
from replay_server.ports import DEFAULT_ADDRESS, DEFAULT_METRICS_PORT
from zero.config import ExperimentConfig

MANUAL_RUN = Path("runs/manual")
WILDCARD_HOSTS = ("", "0", "0.0.0.0", "::", "::0", "*")  # noqa: S104 - refused, not bound
MAX_MINUTES = 1e6
DEFAULT_MINUTES = 10.0

app = typer.Typer(
    name="zero",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Distributed self-play with a durable replay server. `zero train` does it all on this machine.",
)


def _minutes(value: float | None) -> float | None:
    if value is not None and not 0 < value <= MAX_MINUTES:  # nor is NaN
        raise typer.BadParameter(f"must be above 0 and at most {MAX_MINUTES:.0f}, got {value:g}")
    return value


def _one_part(value: str | None) -> str | None:
    if value is not None and (Path(value).name != value or value.startswith(".")):
        raise typer.BadParameter(f"must be the name of a folder without its path, got {value!r}")
    return value


def _device(value: str) -> str:
    if value not in {"auto", "cpu", "cuda"}:
        raise typer.BadParameter(f"must be auto, cpu or cuda, got {value!r}")
    return value


def _host_for_others(value: str) -> str:
    if value.strip("[]") in WILDCARD_HOSTS:
        raise typer.BadParameter(
            f"others are told to reach this process there: give an address of its own, got {value!r}"
        )
    return value


Host = Annotated[
    str,
    typer.Option(envvar="ZERO_HOST", callback=_host_for_others, help="Interface to serve on; others must reach it."),
]
RunDir = Annotated[Path, typer.Option(envvar="ZERO_RUN_DIR", metavar="DIR", help="The run's folder.")]


@app.command()
def train(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer wants it
    context: typer.Context,
    experiment: Experiment = "triangle",
    overrides: Overrides = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            "-m",
            callback=_minutes,
            help="How long to train at most; by default 10, or as long as --max-steps or --target-score take.",
        ),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="The training step at which the run is finished, resumed or not.")
    ] = None,
    target_score: Annotated[
        float | None, typer.Option(help="The evaluation score of the search at which the run is finished.")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="How many actors play; by default one per core, less one for the learner.")
    ] = None,
    reanalysers: Annotated[
        int, typer.Option(min=0, help="How many roles search stored positions again with the newest weights.")
    ] = 0,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the new run; by default ROOT/RUN-NAME.")
    ] = None,
    run_name: Annotated[
        str | None, typer.Option(callback=_one_part, help="Name of the new run; by default EXPERIMENT-TIME.")
    ] = None,
    root: Root = DEFAULT_ROOT,
    application: Application = DEFAULT_APPLICATION,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|CHECKPOINT|latest",
            autocompletion=complete_run,
            help="Go on with a run, by folder or name, from its newest checkpoint or a given one; `latest` is the run "
            "in ROOT that was used last.",
        ),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(min=0, help="Of --resume: the training step to go on from; newer checkpoints are set aside."),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Of --resume: a setting that may differ from the run's; repeatable."),
    ] = None,
    allow_fresh: Annotated[
        bool,
        typer.Option(
            "--allow-fresh",
            help="Of a run that goes on: begin at step 0, with its data, if none of its checkpoints is intact.",
        ),
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            envvar="ZERO_RAY_ADDRESS",
            metavar="HOST:PORT|auto",
            help="Place the roles on this Ray cluster, from one of its machines, where the run goes on if this command "
            "ends; without, Ray is started here.",
        ),
    ] = None,
    place: Annotated[
        list[str] | None,
        typer.Option(
            envvar="ZERO_PLACE",
            metavar="ROLE:NAME=AMOUNT,...",
            help="Of --ray-address: what a role asks of a machine: cpu, gpu, or a resource that Ray was given; for "
            "example learner:cpu=4,gpu=1; repeatable.",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option(help="Of --ray-address: end as soon as the run is under way; `zero status` shows it.")
    ] = False,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    tls_ca: TlsCa = None,
    tls_name: TlsName = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="ZERO_METRICS_PORT",
            min=0,
            max=65535,
            help=f"Where the replay server serves /metrics and /sd; by default {DEFAULT_METRICS_PORT} if it is free.",
        ),
    ] = None,
    inference: Inference = None,
    evaluator: Annotated[bool, typer.Option(help="Measure the agent on fixed seeds meanwhile.")] = True,
    profile: Annotated[
        bool, typer.Option("--profile", help="Keep where the time of every role goes; `zero profile show RUN` tells.")
    ] = False,
    sinks: SinkNames = None,
    mlflow_uri: MlflowUri = None,
    statistics_file: StatisticsFile = None,
    live: Annotated[
        bool | None, typer.Option("--live/--no-live", help="Draw a live panel; by default in a terminal.")
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Train: start Redis, replay server, learner, actors and evaluator, show how it goes, save at the end.

    All roles of a run share its certificate, key and token: their files must be there on every machine of a cluster.

    Examples: `zero train --minutes 5 --set search.num_simulations=64` and
    `zero train --ray-address auto --insecure --actors 64 --place actor:cpu=2 --detach`
    """
    from deploy.statistics.run_statistics import StatisticsSettings  # noqa: PLC0415 - imports gRPC

    refuse_two_urls(redis_url, redis_url_file)
    statistics_settings = StatisticsSettings(None if sinks is None else tuple(sinks), mlflow_uri, statistics_file)
    statistics_settings.check()
    if tls_certificate is not None and tls_ca is None:
        raise DeployError("--tls-certificate: give --tls-ca, too, by which the other roles check it", BAD_INPUT)
    if ray_address is None:
        _refuse_beside("a run on this machine: give --ray-address", {"--place": place, "--detach": detach})
    placements = parse_placements(place or [])
    if resume is not None:
        _refuse_beside("--resume, which names the run", {"--run-dir": run_dir, "--run-name": run_name})
    new_run = run_dir or (root / run_name if run_name else None)
    chosen = choose_run(
        RunRequest(
            experiment=experiment,
            overrides=overrides or [],
            experiment_is_given=_is_given(context, "experiment"),
            new_run=new_run,
            root=root,
            resume=resume,
            step=step,
            allowed=allow_change or [],
            max_steps=max_steps,
            allow_fresh=allow_fresh,
        ),
        _check,
    )
    from deploy.launch import TrainOptions  # noqa: PLC0415 - imports Ray
    from deploy.launch import train as train_run  # noqa: PLC0415
    from deploy.session import SessionOptions  # noqa: PLC0415

    console = Console()
    is_bounded = minutes is not None or max_steps is not None or target_score is not None
    session = SessionOptions(
        minutes=minutes if is_bounded else DEFAULT_MINUTES,
        max_steps=max_steps,
        target_score=target_score,
        application=application,
        num_reanalysers=reanalysers,
        redis_url=redis_url,
        redis_url_file=redis_url_file,
        security=SecuritySettings(
            certificate_file=tls_certificate,
            key_file=tls_key,
            client_ca_file=tls_client_ca,
            token_file=token_file,
            insecure=insecure,
        ),
        credentials=Credentials(
            ca_file=tls_ca,
            certificate_file=tls_certificate if tls_client_ca else None,
            key_file=tls_key if tls_client_ca else None,
            token_file=token_file,
            insecure=insecure,
            server_name=tls_name,
        ),
        inference=inference,
        metrics_port=metrics_port,
        evaluator=evaluator,
        statistics=statistics_settings,
        program=program_as_typed(sys.argv[0]),
        profile=profile,
    )
    options = TrainOptions(
        session=session,
        num_actors=actors,
        ray_address=ray_address,
        placements=placements,
        detach=detach,
        live=console.is_terminal if live is None else live,
        log_level=log_level,
    )
    for note in chosen.notes:
        console.print(f"    the run {note}", markup=False, highlight=False, soft_wrap=True)
    ending = train_run(chosen.config, chosen.folder, options, console)
    if ending is not None and ending.state is RunState.INTERRUPTED:
        raise typer.Exit(INTERRUPTED)


app.command("replay-server")(serve)
app.command("serve")(serve_agent)
app.add_typer(replay, name="replay")
app.add_typer(statistics, name="statistics")
for command in (play, watch, export, tensorboard, mlflow, ray):
    app.command()(command)
app.add_typer(runs, name="runs")
for command in (status, scale, stop):
    app.command()(command)
app.add_typer(profile_commands, name="profile")


@app.command()
def learner(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer wants it
    experiment: Experiment = "triangle",
    overrides: Overrides = None,
    run_dir: RunDir = MANUAL_RUN,
    application: Application = DEFAULT_APPLICATION,
    device: Annotated[
        str,
        typer.Option(
            envvar="ZERO_DEVICE",
            callback=_device,
            metavar="auto|cpu|cuda",
            help="What to compute on: a GPU if there is one, no GPU, or a GPU and nothing else.",
        ),
    ] = "auto",
    replay_address: ReplayAddress = DEFAULT_ADDRESS,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: ClientTokenFile = None,
    insecure: PlaintextToken = False,
    host: Host = "127.0.0.1",
    metrics_port: MetricsPort = 0,
    log_level: LogLevel = "info",
) -> None:
    """Be the learner: draw batches, train, publish weights, save checkpoints; goes on from the newest one.

    Example: `zero learner --replay-address 127.0.0.1:8470 --run-dir runs/manual`
    """
    config = load_experiment(experiment, overrides or [])
    folder = open_or_create_run_folder(run_dir, config, application)
    assignment = Assignment(
        Role.LEARNER,
        folder.context(),
        device=device,
        host=host,
        metrics_port=metrics_port,
        replay_address=replay_address,
        credentials=Credentials(tls_ca, tls_certificate, tls_key, token_file, insecure),
    )
    with locked(folder):
        folder.forget_requests()
        try:
            _be(assignment, config, log_level, folder.stop_file.exists)
        finally:
            folder.forget_requests()


@app.command()
def actor(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer wants it
    experiment: Experiment = "triangle",
    overrides: Overrides = None,
    index: Annotated[
        int, typer.Option(min=0, help="Which of the run's actors. Every actor of a run needs its own number.")
    ] = 0,
    inference: Inference = None,
    replay_address: ReplayAddress = DEFAULT_ADDRESS,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: ClientTokenFile = None,
    insecure: PlaintextToken = False,
    host: Host = "127.0.0.1",
    metrics_port: MetricsPort = 0,
    log_level: LogLevel = "info",
) -> None:
    """Be an actor: play with the newest weights and send what was played.

    The network is evaluated here; with --inference a served agent does it, perhaps on a GPU, for many actors at once.

    Example: `zero actor --replay-address 127.0.0.1:8470 --index 1`
    """
    config = load_experiment(experiment, overrides or [])
    assignment = Assignment(
        Role.ACTOR,
        RunContext.of(MANUAL_RUN),
        index=index,
        host=host,
        metrics_port=metrics_port,
        replay_address=replay_address,
        credentials=Credentials(tls_ca, tls_certificate, tls_key, token_file, insecure),
        inference=inference,
    )
    _be(assignment, config, log_level)


@app.command()
def reanalyser(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer wants it
    experiment: Experiment = "triangle",
    overrides: Overrides = None,
    index: Annotated[
        int, typer.Option(min=0, help="Which of the run's reanalysers. Every one of a run needs its own number.")
    ] = 0,
    replay_address: ReplayAddress = DEFAULT_ADDRESS,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: ClientTokenFile = None,
    insecure: PlaintextToken = False,
    host: Host = "127.0.0.1",
    metrics_port: MetricsPort = 0,
    log_level: LogLevel = "info",
) -> None:
    """Be a reanalyser: search stored positions again with the newest weights, write back policies and values.

    Any number of them may come and go; `reanalyse.steps_per_insert` says how much they do together.

    Example: `zero reanalyser --replay-address 127.0.0.1:8470 --index 1`
    """
    config = load_experiment(experiment, overrides or [])
    assignment = Assignment(
        Role.REANALYSER,
        RunContext.of(MANUAL_RUN),
        index=index,
        host=host,
        metrics_port=metrics_port,
        replay_address=replay_address,
        credentials=Credentials(tls_ca, tls_certificate, tls_key, token_file, insecure),
    )
    _be(assignment, config, log_level)


@app.command()
def evaluate(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer wants it
    context: typer.Context,
    measured: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="Measure this run once, and end: its folder, its name in ROOT, or `latest`.",
            autocompletion=complete_run,
        ),
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN", help="The same as RUN.")] = None,
    root: Root = DEFAULT_ROOT,
    weights: Annotated[
        str,
        typer.Option(
            callback=latest_or_best,
            metavar="latest|best",
            help="Of --run: the newest checkpoint, or what its evaluator scored highest.",
        ),
    ] = "latest",
    games: Annotated[int, typer.Option(min=1, help="Fixed seeds to play with --run, per player or pair.")] = 256,
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            metavar="NAME",
            help="Measure this one too, instead of those of the experiment: random, greedy, line-fill, mobility, "
            "perfect, flat-N (random games per action), mcts-N (per move); repeatable.",
        ),
    ] = None,
    simulations: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Search with so many simulations per move too; repeatable."),
    ] = None,
    as_json: AsJson = False,
    experiment: Experiment = "triangle",
    overrides: Overrides = None,
    run_dir: RunDir = MANUAL_RUN,
    replay_address: ReplayAddress = DEFAULT_ADDRESS,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: ClientTokenFile = None,
    insecure: PlaintextToken = False,
    host: Host = "127.0.0.1",
    metrics_port: MetricsPort = 0,
    log_level: LogLevel = "info",
) -> None:
    """Measure a run on fixed seeds, once; or without RUN be the evaluator, which measures new weights at intervals.

    With RUN, --set changes the config that the run has, for example how deep the search goes. As the evaluator it
    keeps the weights whose search scored highest in the folder `best` of --run-dir.

    Examples: `zero evaluate runs/manual --weights best --simulations 128 --baseline mobility` and
    `zero evaluate --replay-address 127.0.0.1:8470`
    """
    if run is not None and measured is not None:
        raise DeployError("give the run once, as RUN or as --run", BAD_INPUT)
    run = run or measured
    if run is not None:
        folder = find_run(run, root)
        from deploy.evaluate import Measurement, evaluate_run  # noqa: PLC0415 - imports torch
        from deploy.run_weights import WhichWeights  # noqa: PLC0415

        _refuse_beside(
            "--run: a run is measured by the config it has", {"--experiment": _is_given(context, "experiment")}
        )
        measurement = Measurement(games, baselines, simulations or (), WhichWeights(weights))
        evaluate_run(folder.path, overrides or [], measurement, Console(), as_json=as_json)
        return
    _refuse_beside(
        "the evaluator, which measures new weights: give --run",
        {"--weights": _is_given(context, "weights"), "--json": as_json},
    )
    config = load_experiment(experiment, overrides or [])
    assignment = Assignment(
        Role.EVALUATOR,
        RunContext.of(run_dir),
        host=host,
        metrics_port=metrics_port,
        replay_address=replay_address,
        credentials=Credentials(tls_ca, tls_certificate, tls_key, token_file, insecure),
        baselines=None if baselines is None else tuple(baselines),
        simulations=tuple(simulations or ()),
    )
    _be(assignment, config, log_level)


config_commands = typer.Typer(no_args_is_help=True, help="Say what would be learned, before it is.")
app.add_typer(config_commands, name="config")


@config_commands.command("show")
def show_config(experiment: Experiment = "triangle", overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the effective config of an experiment as TOML, every value of it.

    Example: `zero config show --experiment tic_tac_toe --set learner.batch_size=128 > mine.toml`
    """
    found = load_experiment(experiment, overrides or [])
    _check(found)
    typer.echo(json_text(found) if as_json else config_to_toml(found), nl=as_json)


@config_commands.command("check")
def check_config(experiment: Experiment = "triangle", overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Build what an experiment names, its game and its table, and say whether it can be trained.

    Example: `zero config check --experiment mine.toml`
    """
    found = load_experiment(experiment, overrides or [])
    _check(found)
    if as_json:
        typer.echo(json_text({"experiment": found.name, "game": found.game.name, "problems": []}))
        return
    network = f"{found.network.blocks} blocks of {found.network.channels} channels"
    typer.echo(f"{found.name} can be trained: {found.game.name}, {network}")


def program_as_typed(argv0: str) -> str:
    """What to type in this terminal for this program, which may not be on its PATH."""
    if Path(argv0).name != "zero" or shutil.which("zero") == argv0:
        return "zero"
    return shlex.quote(argv0)


def _check(config: ExperimentConfig) -> None:
    """Build what the config names once, before anything is started."""
    check_experiment(config)
    if config.evaluation.baselines:
        from actors.baselines import make_baseline  # noqa: PLC0415 - imports torch
        from zero.games.game import GameError  # noqa: PLC0415
        from zero.games.registry import make_game  # noqa: PLC0415

        game = make_game(config.game.name, config.game.options)
        try:
            for name in config.evaluation.baselines:
                make_baseline(name, game)
        except GameError as error:
            raise DeployError(f"evaluation.baselines: {error}", BAD_INPUT) from None


def _be(
    assignment: Assignment, config: ExperimentConfig, log_level: str, is_asked: Callable[[], bool] = lambda: False
) -> None:
    """Be a role until a signal, or until `is_asked()` to stop."""
    log_to_stderr(log_level)
    typer.echo(f"{assignment.name} of {config.name}, replay server {assignment.replay_address} (Ctrl-C stops)")
    run_until_interrupted(lambda stop: run_role(assignment, config, stop), is_asked)


def _is_given(context: typer.Context, parameter: str) -> bool:
    """Whether an option stands on the command line or in the environment."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name != "DEFAULT"


def _refuse_beside(option: str, others: dict[str, object]) -> None:
    for other, value in others.items():
        if value:
            raise DeployError(f"{other} does not go with {option}", BAD_INPUT)


def main() -> None:
    """Run the command line; a user's mistake ends it with one line and no traceback."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC would log comes as an error that says more
    try:
        # Not standalone: typer would show what is wrong with an option as a box of several lines.
        exit_code = app(standalone_mode=False)
    except typer.TyperException as error:
        text = as_one_line(error)
        exit_code = error.exit_code
    except typer.Abort:  # Ctrl-C where a question was asked
        text, exit_code = "interrupted", INTERRUPTED
    except DeployError as error:
        text = str(error)
        exit_code = error.exit_code
    else:
        text = ""
    if text:
        typer.echo(f"error: {text}", err=True)
    sys.exit(exit_code)
