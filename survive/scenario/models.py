"""The grammar of scenario and target files. The only place where pydantic is used.

A model says what a key may hold; what ties keys together is checked by the loader. Every
description is shown by editors, through the JSON Schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    WithJsonSchema,
    model_validator,
)

from survive.scenario.settings import check_bare
from survive.units import UnitError, duration_us, price, rate_rps, scale, share

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
_HIDDEN = re.compile(r"[\x00-\x1f\x7f]")
_TEMPLATE = re.compile(r"\{\{.*?\}\}")
_PATH_TEXT = re.compile(r"[!$-;=?-~]*")  # printable ASCII but space " # < >
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a field name, RFC 9110 §5.1


def _quantity(read: Callable[[object], Any], example: str, *, zero: bool) -> Any:
    def parse(value: object) -> Any:
        check_bare(value, example)
        result = read(value)
        if not zero and result == 0:
            raise UnitError(f"{value!r} is zero; it must be more")
        return result

    return BeforeValidator(parse)


def _text_schema(pattern: str, *examples: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": list(examples)})


_NUMBER = r"^\s*\d+(\.\d+)?\s*"
_TIME = r"\s*\d+(\.\d+)?\s*(us|µs|ms|s|min|m|h|d)\s*"
Duration = Annotated[
    int,
    _quantity(duration_us, "300ms, 8s or 10m", zero=False),
    _text_schema(_NUMBER + r"(us|µs|ms|s|min|m|h|d)\s*$", "300ms", "8s", "10m"),
]
Rate = Annotated[
    Any,
    _quantity(rate_rps, "400M/day or 50/s", zero=False),
    _text_schema(_NUMBER + r"[kKMBG]?\s*/\s*(sec|s|min|m|hour|h|day|d)\s*$", "400M/day", "50/s"),
]
Share = Annotated[
    float,
    _quantity(share, "60%", zero=True),
    _text_schema(_NUMBER + r"%\s*$", "60%"),
]
Scale = Annotated[
    Any,
    _quantity(scale, "1/1000", zero=False),
    _text_schema(r"^\s*\d+\s*/\s*\d+\s*$", "1/1000"),
]
Price = Annotated[
    Any,
    _quantity(price, "2.50 USD/h", zero=True),
    _text_schema(_NUMBER + r"[A-Z]{3}\s*/\s*(h|hour|d|day|s|min)\s*$", "2.50 USD/h"),
]


def _span(value: object) -> object:
    check_bare(value, "500ms..8s")
    first, dots, last = str(value).partition("..")
    span = (duration_us(first), duration_us(last if dots else first))
    if not 0 < span[0] <= span[1]:
        raise UnitError(f"{value!r} is not from a shorter time to a longer one, like 500ms..8s")
    return span


Span = Annotated[
    Any,  # (microseconds, microseconds)
    BeforeValidator(_span),
    _text_schema("^" + _TIME + r"(\.\." + _TIME + ")?$", "500ms..8s"),
]


def _clean(value: object) -> object:
    if isinstance(value, str) and _HIDDEN.search(value):
        raise ValueError("holds a control character")
    return value


def _path(value: object) -> object:
    _clean(value)
    if not isinstance(value, str):
        return value
    if not value.startswith("/"):
        raise ValueError(f"{value!r} is not a path; it begins with / (the target says the host)")
    if not _PATH_TEXT.fullmatch(_TEMPLATE.sub("", value)):
        raise ValueError(f"{value!r} holds a character that a path cannot; percent-encode it")
    return value


def _names(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _statuses(value: object) -> object:
    if isinstance(value, str | bool | float | dict):
        raise ValueError(f"{value!r} is not a status; write 200 or [401, 403]"[:120])
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


def _header_names(value: object) -> object:
    for name in value if isinstance(value, dict) else ():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not a header name")
    return value


def _without_x(value: object) -> object:
    """Keys that begin with ``x-`` are the reader's own."""
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if not key.startswith("x-")}
    return value


def _moment(value: object) -> object:
    check_bare(value, "30s or production + 8s")
    return _clean(value)


Moment: TypeAlias = Annotated[str, BeforeValidator(_moment)]


def _host_port(value: object) -> object:
    text = _clean(value)
    form = r"[A-Za-z0-9.\[\]:-]+:[0-9]{1,5}|.*\$\{[A-Za-z_][A-Za-z0-9_]*\}.*"
    if isinstance(text, str) and not re.fullmatch(form, text):
        raise ValueError(f"{value!r} is not host:port; write it like 127.0.0.1:8474")
    return text


def _variable(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError(f"{value!r} is not the name of a variable")
    return value


Variable: TypeAlias = Annotated[
    str, BeforeValidator(_variable), _text_schema(r"^[A-Za-z_][A-Za-z0-9_]*$", "UPSTREAMS")
]
Text: TypeAlias = Annotated[str, BeforeValidator(_clean)]
HostPort: TypeAlias = Annotated[str, BeforeValidator(_host_port)]
Name: TypeAlias = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Path = Annotated[str, BeforeValidator(_path), _text_schema("^/", "/v1/search?q={{ row.query }}")]
FreeJson: TypeAlias = Any
Names = Annotated[
    list[Text],
    BeforeValidator(_names),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]
Statuses = Annotated[
    list[Annotated[int, Field(ge=100, le=599)]],
    BeforeValidator(_statuses),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 100, "maximum": 599},
                {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 100, "maximum": 599},
                    "minItems": 1,
                },
            ]
        }
    ),
]
DropX = BeforeValidator(_without_x)


class Strict(BaseModel):
    """Unknown keys are errors, nothing is converted, ``x-*`` keys are free."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, populate_by_name=False, defer_build=True
    )

    @model_validator(mode="before")
    @classmethod
    def _free_keys(cls, value: object) -> object:
        return _without_x(value)


# ------------------------------------------------------------------------------- scenario


class ExpectModel(Strict):
    """What makes an answer good."""

    status: Statuses | None = Field(None, description="The HTTP status, or a list; default 200.")
    stream: Literal["complete"] | None = Field(
        None, description="`complete`: a stream must end with its finish reason and [DONE]."
    )
    tokens: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Exactly so many output tokens: by the answer's `usage`, else by the content "
        "events of a stream. Fewer is `truncated`, also if the end looks whole.",
    )
    is_json: bool = Field(False, alias="json", description="`true`: the answer must be JSON.")
    has: Names | None = Field(
        None,
        description="Places that the JSON answer must have, like choices.0.message or a list.",
    )


_AUTH = "Whose key is sent: bearer (default), none, or one of the target's `auth: identities`."


class RequestModel(Strict):
    """One kind of call that users make. Exactly one of get, post, put, patch, delete."""

    share: Share | None = Field(
        None, description="Part of the traffic, like 60%. Kinds without one divide the rest."
    )
    get: Path | None = Field(None, description="Path of a GET; may hold {{ row.x }}.")
    post: Path | None = Field(None, description="Path of a POST; may hold {{ row.x }}.")
    put: Path | None = Field(None, description="Path of a PUT; may hold {{ row.x }}.")
    patch: Path | None = Field(None, description="Path of a PATCH; may hold {{ row.x }}.")
    delete: Path | None = Field(None, description="Path of a DELETE; may hold {{ row.x }}.")
    body: FreeJson = Field(
        None,
        alias="json",
        description="The JSON body; strings may hold {{ row.x }} and {{ target.x }}. "
        "`stream: true` makes this a streamed kind.",
    )
    headers: Annotated[dict[str, Text], BeforeValidator(_header_names)] = Field(
        {}, description="Headers to send beside those of HTTP and of the bearer key."
    )
    auth: Name = Field("bearer", description=_AUTH)
    data: Text | None = Field(
        None,
        description="A .jsonl or .csv file beside the scenario; each row is one {{ row }}. Or "
        "azure-conv, azure-code: a thousand rows with the lengths of those public traces, as "
        "input_tokens, output_tokens, and prompt (as many words).",
    )
    expect: ExpectModel = Field(
        ExpectModel.model_construct(status=None, stream=None, tokens=None, is_json=False, has=None),
        description="The status, the end, the tokens and the JSON that an answer must have.",
    )
    timeout: Duration = Field(
        10_000_000, description="From the intended start; also sizes the lanes. Default 10s."
    )


class RetriesModel(Strict):
    """How users try again when a call fails."""

    max: int = Field(0, ge=0, le=20, description="Tries after the first; 0 to 20. Default 0.")
    backoff: Span = Field(
        (500_000, 8_000_000),
        description="The first wait and the longest, like 500ms..8s (default): each wait is drawn "
        "from the first to twice the one before.",
    )
    honour_retry_after: bool = Field(
        True, description="An answer's Retry-After is the least wait. Default true."
    )


class ClientsModel(Strict):
    """Users are not robots."""

    retries: RetriesModel | None = Field(None, description="Whether users try again.")
    gives_up_after: Duration | None = Field(
        None, description="Without a first token by then, the user leaves: `abandoned`."
    )


class UserRampModel(Strict):
    """A ramp of users."""

    from_: int = Field(alias="from", ge=1, le=10_000, description="Users at the start.")
    to: int = Field(ge=1, le=10_000, description="Users at the end.")


class ExponentialModel(Strict):
    """A think time that is drawn anew each time."""

    exponential: Duration = Field(description="Its mean, like 1s.")


def _users_form(value: object) -> str:
    return "map" if isinstance(value, dict | UserRampModel) else "number"


def _think_form(value: object) -> str:
    return "map" if isinstance(value, dict | ExponentialModel) else "time"


UserCount = Annotated[
    Annotated[int, Field(ge=1, le=10_000), Tag("number")] | Annotated[UserRampModel, Tag("map")],
    Discriminator(_users_form),
]
Think = Annotated[
    Annotated[Duration, Tag("time")] | Annotated[ExponentialModel, Tag("map")],
    Discriminator(_think_form),
]


class PhaseModel(Strict):
    """A stretch of the load, `for` a time: a constant `rate`, a ramp to `ramp_to`, a `spike`, or
    `users` instead of a rate.
    """

    name: Name = Field(description="Unique; windows and `at:` use it.")
    rate: Rate | None = Field(None, description="A constant rate before scale, like 400M/day.")
    ramp_to: Rate | None = Field(
        None, description="Ramp from the previous phase's rate to this one."
    )
    spike: Rate | None = Field(
        None, description="A burst at this rate: a phase of its own, no part of `steady`."
    )
    steps: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="Ramp in so many steps of equal length, the last one at `ramp_to`.",
    )
    curve: Literal["linear", "exponential", "sine"] | None = Field(
        None,
        description="The shape of a ramp, default linear; or sine: a rate that swings around "
        "`rate`, up first, with `swing` and `period`.",
    )
    swing: Share | None = Field(
        None, description="Of a sine: how far it goes up and down, like 60% of `rate`; below 100%."
    )
    period: Duration | None = Field(
        None, description="Of a sine: from crest to crest; `for` is a whole number of these."
    )
    users: UserCount | None = Field(
        None,
        description="So many users instead of a rate, or a ramp {from: 1, to: 50}: each asks, "
        "waits for the answer, thinks and asks again (closed model). Of all phases or of none.",
    )
    think: Think | None = Field(
        None,
        description="How long a user thinks after an answer: 1s, or {exponential: 1s} drawn anew "
        "each time with that mean. Default: not at all.",
    )
    for_: Duration = Field(alias="for", description="How long, like 60s.")
    warm_up: bool = Field(False, description="Left out of `steady` and `run`.")
    share: dict[str, Share] = Field(
        {}, description="Another mix in this phase; kinds not named keep their proportions."
    )


class GammaModel(Strict):
    """Gaps of a gamma process."""

    cv: float = Field(
        ge=1, le=20, description="Coefficient of variation of the gaps; 1 is Poisson, 3 bursty."
    )


class BurstyModel(Strict):
    """Arrivals in bursts."""

    bursty: GammaModel = Field(description="Gaps of a gamma process, like {cv: 3}.")


class TraceModel(Strict):
    """Arrivals as in a trace of real traffic."""

    trace: Text = Field(
        description="A file beside the scenario: Azure's CSV (TIMESTAMP, ...) or Mooncake's .jsonl "
        "(timestamp, ...). It gives the pattern, the phases give the rates. As `data:` too, its "
        "rows come in step, with input_tokens and output_tokens."
    )


def _arrivals_form(value: object) -> str:
    if isinstance(value, TraceModel) or (isinstance(value, dict) and "trace" in value):
        return "trace"
    return "map" if isinstance(value, dict | BurstyModel) else "name"


Arrivals = Annotated[
    Annotated[Literal["poisson", "uniform", "azure-conv", "azure-code"], Tag("name")]
    | Annotated[BurstyModel, Tag("map")]
    | Annotated[TraceModel, Tag("trace")],
    Discriminator(_arrivals_form),
]


class LoadModel(Strict):
    """The schedule of the traffic."""

    arrivals: Arrivals = Field(
        "poisson",
        description="How intended starts are spread: poisson (default), uniform, bursty: {cv: 3}, "
        "bursty like a public trace: azure-conv (cv 1.1), azure-code (cv 13.2), or as in a trace "
        "of your own: trace: calls.csv.",
    )
    scale: Scale = Field(
        Fraction(1), description="Every rate times this, like 1/1000; printed in each header."
    )
    lanes: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Connections, one request each at a time. Default: peak rate × largest "
        "timeout × 1.2, at most 10000.",
    )
    max_extend: Duration = Field(
        60_000_000,
        description="By how much `--inconclusive extend` may prolong the last phase. Default 60s.",
    )
    affinity: Literal["none", "auto"] = Field(
        "none",
        description="`auto`: each load worker on a core of its own and all else that the run "
        "starts on the others, if there are enough. Default none: the kernel decides.",
    )
    locustfile: Text | None = Field(
        None,
        description="A Locust file beside the scenario, unchanged: its users are those of the "
        "phases, and what they ask is recorded as `USER CLASS/REQUEST NAME`. Real host only.",
    )
    phases: list[PhaseModel] = Field(min_length=1, description="In order of time.")


class FaultModel(Strict):
    """One fault: what, where, when, how long."""

    kind: Text = Field(description="The kind, like network.latency; `survive faults` lists all.")
    service: Text | None = Field(None, description="Whose replicas (or their GPUs) are hit.")
    link: Names | None = Field(
        None, description="The link that is hit, like gateway -> inference, or a list of them."
    )
    count: int | None = Field(
        None, ge=1, le=1000, description="How many replicas of the service. Default 1."
    )
    share: Share | None = Field(
        None,
        description="Instead of count: this share of the service's replicas (spares that sleep do "
        "not count), rounded down, one at least. A share of *calls* stands in `with`.",
    )
    at: Moment = Field(description="From the start (30s) or from a phase (production + 8s).")
    for_: Duration | None = Field(
        None, alias="for", description="How long a held fault stays; one-shots have none."
    )
    every: Duration | None = Field(
        None, description="From one inject to the next; with `times`. Each draws its own victims."
    )
    times: int | None = Field(
        None, ge=2, le=1000, description="How often it happens: windows fault:NAME#1, #2, ..."
    )
    with_: dict[str, FreeJson] = Field(
        {}, alias="with", description="Settings of the kind; `survive faults KIND` shows them."
    )


class HysteresisModel(Strict):
    """Three phases of constant rate, in order of time, after the fault is healed."""

    before: Name = Field(description="The phase in which it is broken and healed.")
    relief: Name = Field(description="The phase in which the load is low.")
    again: Name = Field(description="The phase in which the load is as it was.")


class ObjectiveModel(Strict):
    """A limit on a metric in a window. Exactly one of min and max."""

    metric: Text = Field(
        description="Of load: success, complete, goodput, tokens_per_s, amplification, or a time "
        "with its percentile: latency.p99, service_time.p95, ttft.p95, itl.p99, tpot.p50. Of the "
        "target: recovery, scale_up, cost. Of probes: denied, leaked, isolated, audited, "
        "encrypted, freshness.p95. Of the target's own metrics: replicas, gpu, kv, queue, each "
        "with a percentile (queue.p95) or without (in every scrape)."
    )
    min: FreeJson = Field(
        None,
        description="The least: 99% of success, complete, denied, isolated, audited, encrypted; "
        "90/s of goodput, tokens_per_s; 3 of replicas, queue; 20% of gpu, kv.",
    )
    max: FreeJson = Field(
        None,
        description="The most: 800ms of times, recovery, scale_up; 0% of leaked; 1.5x of "
        "amplification; 3 USD per 1M tokens or 2 USD per 1k answers of cost; 20 of replicas, "
        "queue; 95% of gpu, kv.",
    )
    of: Names | None = Field(
        None,
        description="A request kind, a probe or a service (of what the metric is), or a list. "
        "Default: all that have the metric; of replicas, gpu, kv and queue the services with GPUs. "
        "With a locustfile also a pattern: Shopper/*.",
    )
    during: Text | None = Field(
        None,
        description="steady, run, each fault, phase:NAME, fault:NAME or recovery:NAME. "
        "Required, but for recovery, which means each fault; of scale_up a phase:NAME.",
    )
    stable_for: Duration | None = Field(
        None,
        description="How long the steady objectives must hold again; recovery and scale_up only.",
    )
    hysteresis: HysteresisModel | None = Field(
        None,
        description="Phases that tell whether lowering the load heals what stays broken under it; "
        "recovery only.",
    )


class CallModel(Strict):
    """One call of a probe. Exactly one of get, post, put, patch, delete."""

    get: Path | None = Field(None, description="Path of a GET; may hold {{ canary }}.")
    post: Path | None = Field(None, description="Path of a POST; may hold {{ canary }}.")
    put: Path | None = Field(None, description="Path of a PUT; may hold {{ canary }}.")
    patch: Path | None = Field(None, description="Path of a PATCH; may hold {{ canary }}.")
    delete: Path | None = Field(None, description="Path of a DELETE; may hold {{ canary }}.")
    body: FreeJson = Field(
        None,
        alias="json",
        description="The JSON body; strings may hold {{ canary }}, a word that is new for each "
        "probing, and {{ target.x }}.",
    )
    headers: Annotated[dict[str, Text], BeforeValidator(_header_names)] = Field(
        {}, description="Headers to send beside those of HTTP and of the key."
    )
    auth: Name = Field("bearer", description=_AUTH)


class RefusalModel(Strict):
    """What a refusal looks like."""

    status: Statuses | None = Field(None, description="The HTTP status, or a list: [401, 403].")


class ProbeModel(CallModel):
    """A slow, separate caller that checks what load cannot. Its keys say what it finds:

    a call alone is `denied`; with `forbid` `leaked`; with `audit` `audited`; `write` and `read` are
    `freshness`, or `isolated` if another identity reads; `link` is `encrypted`.
    """

    every: Duration = Field(description="From one probing to the next, like 1s.")
    expect: RefusalModel | None = Field(
        None, description="Of a call that must be refused: how. Default status: [401, 403]."
    )
    within: Duration | None = Field(
        None,
        description="Of freshness: later is never. Of the others: how long a call may take. "
        "Default 5s.",
    )
    forbid: Text | None = Field(
        None, description='What no answer may hold, like "{{ target.secret }}"; case is ignored.'
    )
    audit: Name | None = Field(
        None, description="The service whose audit log must have exactly one record of each call."
    )
    write: CallModel | None = Field(None, description="Writes a canary: a 2xx commits it.")
    read: CallModel | None = Field(None, description="Asks for it: found if in a 200 answer.")
    link: Text | None = Field(
        None, description="The link that must carry no plain byte, like gateway -> inference."
    )


class StopIfModel(Strict):
    """Stops the run when too few answers are good."""

    metric: Literal["success"] = Field(description="success")
    below: Share = Field(description="The share of good answers, like 20%.")
    over: Duration = Field(description="The span that is looked at, like 10s.")
    of: Names | None = Field(None, description="Request kinds; default all.")


# --------------------------------------------------------------------------------- target


class AuthModel(Strict):
    """How load identifies itself."""

    bearer: Text | None = Field(
        None, description='The bearer key, from the environment only: "${NAME}".'
    )
    identities: Annotated[dict[Name, Text], DropX] = Field(
        {}, description='Keys of others by name, for `auth:` of requests and probes: "${KEY}.acme".'
    )


class HealthModel(Strict):
    """How a service says that it is ready."""

    get: Path = Field("/health", description="Path that answers 200 when ready.")
    within: Duration = Field(10_000_000, description="How long a start may take. Default 10s.")


class AuditModel(Strict):
    """Where a service writes its audit records."""

    file: Text = Field(description="A file, one JSON object a line.")


class RestartModel(Strict):
    """Supervision."""

    after: Duration = Field(description="How long after its death a replica is started again.")


class ServiceModel(Strict):
    """One service. Exactly one of app, run, url; none with driver compose."""

    app: Text | None = Field(
        None, description='A service of ours: "file.py:make_app"; runs virtually too.'
    )
    run: list[Text] | None = Field(
        None, min_length=1, description="Its own program: argv; {port} becomes its port."
    )
    url: Text | None = Field(
        None,
        description="Where it is, for driver external: http://host:port, https://host:port "
        "(verified) or unix:/path, each spoken to in HTTP/1.1; may hold ${ENV}.",
    )
    ca: Text | None = Field(
        None,
        description="PEM file of the authority that an https url is verified with, in the folder "
        "beside this file that has its name (targets/staging/ for targets/staging.yaml); default "
        "the system's.",
    )
    replicas: int = Field(1, ge=1, le=1000, description="How many. Default 1.")
    standby: int = Field(
        0,
        ge=0,
        le=999,
        description="How many of them, the last ones, may sleep until an autoscaler wakes them; "
        "faults draw them last.",
    )
    gpu: Literal["simulated"] | None = Field(
        None, description="Each replica has a GPU; gpu.* faults need it."
    )
    simulates: list[Literal["store", "metrics"]] = Field(
        [],
        description="What simulated dependency.* and observability.* faults may break, by its "
        "POST /admin/faults.",
    )
    health: HealthModel = Field(
        HealthModel.model_construct(get="/health", within=10_000_000),
        description="How it says that it is ready.",
    )
    metrics: Path | None = Field(None, description="Path of its Prometheus metrics.")
    audit: AuditModel | None = Field(None, description="Where it writes audit records.")
    restart: RestartModel | None = Field(None, description="Supervision; default none.")
    env: dict[str, Text] = Field({}, description="Environment; values may hold ${ENV}.")


class LinkModel(Strict):
    """Who calls whom; the name is `source -> destination`."""

    env: Variable = Field(description="The variable by which the source gets the addresses.")
    tls: bool = Field(
        False,
        description="Addresses are handed over as https://host:port; both sides show certificates "
        "of an authority made for the run (SURVIVE_TLS_CERT, _KEY, _CA, _CLIENT).",
    )


class ProxyModel(Strict):
    """Who carries the faults on links, if not the embedded fault proxy."""

    toxiproxy: HostPort = Field(
        description="host:port of a Toxiproxy server's API; may be ${ENV}. Its host is in "
        "`allow: hosts`; the run's proxies are named after it, and removed at its end."
    )


class AllowModel(Strict):
    """What a run may touch. Default-deny."""

    hosts: list[Text] = Field(["127.0.0.1"], description="Hosts that load may go to.")
    faults: list[Text] = Field([], description="Families of faults, like network, node, gpu.")
    privileged: bool = Field(
        False, description="What needs root may be used, if the run has --allow-privileged too."
    )
    max_faults: int = Field(3, ge=1, le=100, description="Most faults at once. Default 3.")
    max_duration: Duration = Field(
        300_000_000, description="Longest time that one fault may stay on. Default 5m."
    )


class TargetModel(Strict):
    """The stack under test."""

    driver: Text = Field(description="Who starts it: process, compose or external.")
    compose: Name | None = Field(
        None,
        description="The docker compose file of driver compose: compose/NAME.yaml says what runs.",
    )
    proxy: ProxyModel | None = Field(
        None, description="Who carries faults on links; default: a fault proxy of the run's own."
    )
    isolation: Literal["netns"] | None = Field(
        None,
        description="Each replica in a network namespace of its own (driver process; needs root).",
    )
    entry: Text = Field(description="The service that load goes to.")
    vars: dict[str, FreeJson] = Field({}, description="For templates: {{ target.NAME }}.")
    auth: AuthModel | None = Field(None, description="How load identifies itself.")
    services: Annotated[dict[Name, ServiceModel], DropX] = Field(
        min_length=1, description="By name."
    )
    links: Annotated[dict[str, LinkModel], DropX] = Field(
        {}, description="By `source -> destination`; `load -> ENTRY` is implied."
    )
    prices: Annotated[dict[str, Price], DropX] = Field(
        {}, description="Money per time of one replica, by service: 2.50 USD/h."
    )
    allow: AllowModel = Field(
        AllowModel.model_construct(hosts=["127.0.0.1"], faults=[]),
        description="What a run may touch.",
    )
    weaknesses: list[Text] = Field([], description="Planted defects of the reference stack.")


class TargetFileModel(TargetModel):
    """A target file: targets/NAME.yaml."""

    survive: Literal[1] = Field(description="Version of the grammar: 1.")


def _target_form(value: object) -> str:
    return "map" if isinstance(value, dict | TargetModel) else "name"


# Told apart by form, so that only the problems of the form that was used are shown.
TargetChoice = Annotated[
    Annotated[str, Tag("name")] | Annotated[TargetModel, Tag("map")],
    Discriminator(_target_form),
]


class ScenarioModel(Strict):
    """A scenario file: NAME.survive.yaml."""

    survive: Literal[1] = Field(description="Version of the grammar: 1.")
    name: Name = Field(description="Names the run directory.")
    about: str = Field("", description="One sentence for the report.")
    target: TargetChoice = Field(description="The name of a target file, or the same map here.")
    seed: int = Field(
        1, ge=0, le=2**63 - 1, description="Fixes the schedule and every draw. Default 1."
    )
    requests: Annotated[dict[Name, RequestModel], DropX] = Field(
        {}, description="The kinds of call that users make, by name; none with a `locustfile`."
    )
    clients: ClientsModel = Field(
        ClientsModel.model_construct(retries=None, gives_up_after=None),
        description="How users behave.",
    )
    load: LoadModel = Field(description="How much traffic, when: phases, arrivals, scale.")
    faults: Annotated[dict[Name, FaultModel], DropX] = Field(
        {}, description="What is broken, by name."
    )
    objectives: Annotated[dict[Name, ObjectiveModel], DropX] = Field(
        min_length=1, description="What must hold, by name."
    )
    probes: Annotated[dict[Name, ProbeModel], DropX] = Field(
        {}, description="Slow, separate callers that check what load cannot, by name."
    )
    stop_if: Annotated[dict[Name, StopIfModel], DropX] = Field(
        {}, description="When to stop early, by name."
    )
    kills: Annotated[dict[str, Text], DropX] = Field(
        {},
        description="What this scenario finds, for `survive exam`: a weakness of the reference "
        "stacks, and the objective that breaks on it.",
    )
    claims: Annotated[dict[str, Text], DropX] = Field(
        {},
        description="What people say of such a stack, and the objective that measures it; rows of "
        "the table of scenarios.",
    )
    profiles: Annotated[dict[Name, dict[str, FreeJson]], DropX] = Field(
        {}, description="Sets of overrides by name: {load.scale: 1/100}; see --profile."
    )
