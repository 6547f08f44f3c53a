"""Runs one tool script written for LangChain: a request as a JSON line on standard input, its answer on standard output,
after a line `ready`.

agent-executor starts this file in a sandbox of its own for every call; the limits are set before it begins. What
scripts import comes from the real packages when they are installed, and from `standin` modules made here otherwise.

Requests: {"op": "check", "dependencies": [...]}
          {"op": "describe", "script", "name", "dependencies"}
          {"op": "call", "script", "name", "dependencies", "args", "tool_call_id", "state", "limit", "seconds"}
Answers:  {"kind": "checked", "missing": [...]}
          {"kind": "described", "description", "parameters"}
          {"kind": "text", "content", "status"}    {"kind": "command", "update", "messages"}
          {"kind": "failed", "error"}
"""

import asyncio
import dataclasses
import enum
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import math
import os
import re
import signal
import sys
import types
import typing

# What a script's frames are called in errors.
SCRIPT_FILE = "<script>"

# Packages that this file stands in for.
STOOD_IN = {"langchain", "langchain-core", "langgraph"}


# ---- stand-ins -------------------------------------------------------------------------------------------------


class ToolException(Exception):
    """Raised by a tool to tell the model what went wrong."""


class InjectedToolArg:
    """Marks an argument that the model does not give."""


class InjectedToolCallId(InjectedToolArg):
    """Marks the argument that takes the id of the call."""


class InjectedState(InjectedToolArg):
    """Marks the argument that takes the state, or one field of it."""

    def __init__(self, field=None):
        self.field = field


class InjectedStore(InjectedToolArg):
    """Marks the argument that takes the store; there is none here."""


T = typing.TypeVar("T")
U = typing.TypeVar("U")


@dataclasses.dataclass
class ToolRuntime(typing.Generic[T, U]):
    """What a tool can see of the run it is called in."""

    state: typing.Any
    context: typing.Any = None
    config: dict = dataclasses.field(default_factory=dict)
    stream_writer: typing.Any = None
    tool_call_id: typing.Optional[str] = None
    store: typing.Any = None


@dataclasses.dataclass
class Command(typing.Generic[T]):
    """Writes to the state."""

    graph: typing.Optional[str] = None
    update: typing.Any = None
    resume: typing.Any = None
    goto: typing.Any = ()


class BaseMessage:
    """A message; other fields are kept as they are given."""

    type = "human"

    def __init__(self, content="", **fields):
        self.content = content
        self.id = fields.pop("id", None)
        self.name = fields.pop("name", None)
        self.additional_kwargs = fields.pop("additional_kwargs", {})
        self.response_metadata = fields.pop("response_metadata", {})
        fields.pop("type", None)
        for name, value in fields.items():
            setattr(self, name, value)

    @property
    def text(self):
        if isinstance(self.content, str):
            return self.content
        return "".join(part if isinstance(part, str) else part.get("text", "") for part in self.content)

    def model_dump(self):
        return {"type": self.type, **vars(self)}


class HumanMessage(BaseMessage):
    type = "human"


class SystemMessage(BaseMessage):
    type = "system"


class AIMessage(BaseMessage):
    type = "ai"

    def __init__(self, content="", **fields):
        super().__init__(content, **{"tool_calls": [], **fields})


class ToolMessage(BaseMessage):
    type = "tool"

    def __init__(self, content="", **fields):
        super().__init__(content, **{"status": "success", "artifact": None, "tool_call_id": None, **fields})


class BaseTool:
    """A function with the name, description and arguments that a model is told."""

    def __init__(self, func, name=None, description=None, args_schema=None):
        self.func = func
        self.name = name or func.__name__
        self.description = description or inspect.getdoc(func) or ""
        self.args_schema = args_schema

    def __call__(self, *args, **kwargs):
        return self.func(*args, **kwargs)

    def invoke(self, args):
        return finished(self.func(**coerced(self.func, args)))

    run = invoke


class StructuredTool(BaseTool):
    @classmethod
    def from_function(cls, func=None, coroutine=None, name=None, description=None, args_schema=None, **_):
        return cls(func or coroutine, name, description, args_schema)


def tool(*positional, description=None, args_schema=None, **_):
    """The decorator `@tool`, bare, with a name, or with options."""
    if positional and callable(positional[0]):
        return StructuredTool(positional[0], None, description, args_schema)
    name = positional[0] if positional else None
    if len(positional) > 1 and callable(positional[1]):
        return StructuredTool(positional[1], name, description, args_schema)
    return lambda func: StructuredTool(func, name, description, args_schema)


MESSAGES = {"HumanMessage": HumanMessage, "SystemMessage": SystemMessage, "AIMessage": AIMessage,
            "ToolMessage": ToolMessage, "BaseMessage": BaseMessage, "AnyMessage": BaseMessage}
TOOLS = {"tool": tool, "BaseTool": BaseTool, "StructuredTool": StructuredTool, "ToolException": ToolException,
         "InjectedToolArg": InjectedToolArg, "InjectedToolCallId": InjectedToolCallId}
INJECTED = {"InjectedState": InjectedState, "InjectedStore": InjectedStore, "ToolRuntime": ToolRuntime}

# Modules that scripts import, with what they take from them.
MODULES = {
    "langchain_core.tools": TOOLS,
    "langchain_core.messages": MESSAGES,
    "langchain_core.runnables": {"RunnableConfig": dict},
    "langgraph.types": {"Command": Command},
    "langgraph.prebuilt": INJECTED,
    "langgraph.prebuilt.tool_node": INJECTED,
    "langchain.tools": {**TOOLS, **INJECTED},
    "langchain.messages": MESSAGES,
}


def supply():
    """Makes every module of MODULES importable, real where it is installed; what a real one lacks is added."""
    # A module takes from the real ones before it, so that all speak of the same classes.
    known = {}
    for path, names in MODULES.items():
        try:
            module = importlib.import_module(path)
        except ImportError:
            module = types.ModuleType(path)
            module.__path__ = []
            sys.modules[path] = module
            parent, _, child = path.rpartition(".")
            if parent not in sys.modules:
                sys.modules[parent] = types.ModuleType(parent)
                sys.modules[parent].__path__ = []
            setattr(sys.modules[parent], child, module)
        for name, standin in names.items():
            if not hasattr(module, name):
                setattr(module, name, known.get(name, standin))
            known.setdefault(name, getattr(module, name))
    return types.SimpleNamespace(**known)


# ---- scripts ---------------------------------------------------------------------------------------------------


class Refused(Exception):
    """What is wrong with a request or a script, as the model or an operator reads it."""


def missing(dependencies):
    """The requirements among `dependencies` that are not installed, each with what is there instead."""
    found = []
    for requirement in dependencies:
        match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
        if not match:
            found.append(f"{requirement} (not a requirement)")
            continue
        name = re.sub(r"[-_.]+", "-", match.group(1)).lower()
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        if installed is None:
            module = name.replace("-", "_")
            if name not in STOOD_IN and module not in sys.stdlib_module_names and not is_module(module):
                found.append(requirement)
        elif not satisfies(requirement[match.end():], installed):
            found.append(f"{requirement} ({installed} is installed)")
    return found


def is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def satisfies(rest, installed):
    """Whether `installed` is in the versions that `rest` of a requirement names; extras and markers are not looked at."""
    have = version(installed)
    clauses = re.sub(r"\[[^\]]*\]", "", rest).split(";")[0].strip(" ()")
    for clause in filter(None, (part.strip() for part in clauses.split(","))):
        match = re.match(r"(===|==|~=|!=|>=|<=|>|<)\s*([0-9][^\s]*)$", clause)
        if not match:
            return False
        operator, text = match.groups()
        want = version(text.removesuffix(".*"))
        prefix = have[:len(want)] == want
        width = max(len(have), len(want))
        left, right = (parts + (0,) * (width - len(parts)) for parts in (have, want))
        same = prefix if text.endswith(".*") else left == right
        good = {"==": same, "===": same, "!=": not same, ">=": left >= right, "<=": left <= right, ">": left > right,
                "<": left < right, "~=": left >= right and have[:len(want) - 1] == want[:-1]}[operator]
        if not good:
            return False
    return True


def version(text):
    """The numbers a version begins with."""
    return tuple(int(part) for part in re.match(r"[0-9]+(?:\.[0-9]+)*", text).group().split("."))


def load(request, real):
    """Runs the script and finds its tool."""
    absent = missing(request.get("dependencies") or [])
    if absent:
        raise Refused(f"missing packages: {', '.join(absent)}")
    space = {"__name__": "tool_script", "__file__": SCRIPT_FILE, "__builtins__": __builtins__}
    module = types.ModuleType("tool_script")
    module.__dict__.update(space)
    # Type hints and pickles look for the names of a script in its module.
    sys.modules["tool_script"] = module
    exec(compile(request["script"], SCRIPT_FILE, "exec"), module.__dict__)
    values = [value for value in vars(module).values() if isinstance(value, (real.BaseTool, BaseTool))]
    name = request["name"]
    named = [value for value in values if value.name == name]
    if named:
        return named[-1]
    plain = vars(module).get(name)
    if inspect.isfunction(plain):
        return StructuredTool(plain)
    if len({id(value) for value in values}) == 1:
        return values[0]
    listed = ", ".join(sorted({value.name for value in values})) or "none"
    raise Refused(f"the script defines no tool '{name}'; its tools are: {listed}")


def function_of(found):
    return getattr(found, "func", None) or getattr(found, "coroutine", None) or getattr(found, "_run", None)


def hints(function):
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:
        return dict(getattr(function, "__annotations__", {}))


def injections(function, real):
    """What the run gives to a function: argument → ("state", field) or ("id",) or ("runtime",) or ("nothing",)."""
    found = {}
    for name, hint in hints(function).items():
        if name == "return":
            continue
        for mark in getattr(hint, "__metadata__", ()):
            kind = mark if inspect.isclass(mark) else type(mark)
            if issubclass(kind, (real.InjectedState, InjectedState)):
                found[name] = ("state", getattr(mark, "field", None))
            elif issubclass(kind, (real.InjectedToolCallId, InjectedToolCallId)):
                found[name] = ("id",)
            elif issubclass(kind, (real.InjectedToolArg, InjectedToolArg)):
                found[name] = ("nothing",)
        plain = typing.get_origin(hint) or hint
        if plain in (real.ToolRuntime, ToolRuntime):
            found[name] = ("runtime",)
        elif name == "config" and (plain is real.RunnableConfig or plain is dict):
            found[name] = ("config",)
    return found


def without(annotation):
    """An annotation without `Annotated`, and the text in it that describes the argument."""
    if typing.get_origin(annotation) is typing.Annotated:
        text = next((mark for mark in annotation.__metadata__ if isinstance(mark, str)), None)
        return typing.get_args(annotation)[0], text
    return annotation, None


def schema_of(annotation):
    """The JSON Schema of a Python type; what has none takes anything."""
    annotation, text = without(annotation)
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    plain = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    if annotation in plain:
        schema = {"type": plain[annotation]}
    elif origin is typing.Literal:
        schema = {"enum": list(parts)}
    elif origin in (typing.Union, types.UnionType):
        schema = {"anyOf": [schema_of(part) for part in parts]}
    elif annotation in (list, set, tuple) or origin in (list, set, tuple):
        schema = {"type": "array", **({"items": schema_of(parts[0])} if parts else {})}
    elif annotation is dict or origin is dict:
        schema = {"type": "object", **({"additionalProperties": schema_of(parts[1])} if parts else {})}
    elif inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        schema = {"enum": [member.value for member in annotation]}
    elif hasattr(annotation, "model_json_schema"):
        schema = annotation.model_json_schema()
    elif typing.is_typeddict(annotation):
        schema = object_of(typing.get_type_hints(annotation, include_extras=True), annotation.__required_keys__, {})
    else:
        schema = {}
    return {**schema, "description": text} if text else schema


def object_of(fields, required, defaults):
    properties = {}
    for name, annotation in fields.items():
        properties[name] = schema_of(annotation)
        if defaults.get(name) is not None and is_json(defaults[name]):
            properties[name]["default"] = defaults[name]
    schema = {"type": "object", "properties": properties}
    return {**schema, "required": sorted(required)} if required else schema


def is_json(value):
    return isinstance(value, (str, int, float, bool, list, dict))


def describe(found, real):
    """What a model is told of a tool."""
    injected = injections(function_of(found), real)
    given = getattr(found, "tool_call_schema", None) or found.args_schema
    if isinstance(given, dict):
        parameters = given
    elif hasattr(given, "model_json_schema"):
        parameters = given.model_json_schema()
        parameters.pop("title", None)
        parameters.pop("description", None)
        for name in injected:
            parameters.get("properties", {}).pop(name, None)
        if "required" in parameters:
            parameters["required"] = [name for name in parameters["required"] if name not in injected]
    else:
        signature, typed = inspect.signature(function_of(found)), hints(function_of(found))
        asked = {name: parameter for name, parameter in signature.parameters.items() if name not in injected
                 and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)}
        required = [name for name, parameter in asked.items() if parameter.default is parameter.empty]
        defaults = {name: parameter.default for name, parameter in asked.items() if name not in required}
        parameters = object_of({name: typed.get(name, typing.Any) for name in asked}, required, defaults)
    return {"kind": "described", "description": found.description or "", "parameters": parameters}


# ---- calls -----------------------------------------------------------------------------------------------------


def coerced(function, args):
    """The arguments as the types that the function names: enumerations and pydantic models."""
    typed, made = hints(function), {}
    for name, value in args.items():
        annotation, _ = without(typed.get(name))
        if inspect.isclass(annotation) and issubclass(annotation, enum.Enum) and not isinstance(value, enum.Enum):
            value = annotation(value)
        elif isinstance(value, dict) and hasattr(annotation, "model_validate"):
            value = annotation.model_validate(value)
        made[name] = value
    return made


def finished(value):
    """What a coroutine comes to; anything else is its own result."""
    if inspect.iscoroutine(value):
        return asyncio.run(value)
    return value


def with_messages(state, real):
    """The state with its messages as the objects that scripts know."""
    kinds = {"human": real.HumanMessage, "ai": real.AIMessage, "system": real.SystemMessage, "tool": real.ToolMessage}
    made = []
    for message in state.get("messages") or []:
        kind = kinds.get(message.get("type")) if isinstance(message, dict) else None
        fields = {key: value for key, value in message.items() if value is not None and key != "type"} if kind else {}
        try:
            made.append(kind(**fields) if kind else message)
        except Exception:
            # A message that the installed package does not take is shown as it is stored.
            made.append(message)
    return {**state, "messages": made}


def injected(request, function, real):
    state, call_id = with_messages(request.get("state") or {}, real), request["tool_call_id"]
    given = {}
    for name, (kind, *more) in injections(function, real).items():
        if kind == "state":
            given[name] = state if more[0] is None else state.get(more[0])
        elif kind == "id":
            given[name] = call_id
        elif kind == "config":
            given[name] = {}
        elif kind == "runtime":
            given[name] = real.ToolRuntime(state=state, context=None, config={}, stream_writer=lambda _: None,
                                           tool_call_id=call_id, store=None)
        elif inspect.signature(function).parameters[name].default is inspect.Parameter.empty:
            given[name] = None
    return given


def call(request, real):
    found = load(request, real)
    given = {**request["args"], **injected(request, function_of(found), real)}
    if isinstance(found, BaseTool):
        return answer(found.invoke(given), request, real)
    whole = {"type": "tool_call", "name": found.name, "id": request["tool_call_id"], "args": given}
    only_async = getattr(found, "func", None) is None and getattr(found, "coroutine", None) is not None
    return answer(finished(found.ainvoke(whole) if only_async else found.invoke(whole)), request, real)


def answer(value, request, real):
    if isinstance(value, (list, tuple)) and any(isinstance(one, (real.Command, Command)) for one in value):
        raise Refused("a tool returns one Command, not a list of them")
    if isinstance(value, (real.Command, Command)):
        return command(value, request, real)
    status = "success"
    if isinstance(value, (real.ToolMessage, ToolMessage)):
        status, value = value.status, value.content
    return {"kind": "text", "status": status, "content": text(value)[:request["limit"] + 1]}


def command(value, request, real):
    if value.goto or value.resume is not None or value.graph is not None:
        raise Refused("a Command of a tool may only have `update`; goto, resume and graph are not carried out")
    update = value.update if value.update is not None else {}
    if not isinstance(update, dict):
        update = dict(update)
    update = {str(name): plain(part) for name, part in update.items()}
    messages = update.pop("messages", [])
    messages = messages if isinstance(messages, list) else [messages]
    return {"kind": "command", "update": update, "messages": messages}


def text(value):
    """A result as the model reads it, as LangGraph's tool node writes it."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(plain(value), ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def plain(value):
    """A value as JSON has it."""
    if value is None or isinstance(value, (str, bool, int)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number that is not finite cannot be stored")
        return value
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(part) for part in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    if dataclasses.is_dataclass(value) and not inspect.isclass(value):
        return plain(dataclasses.asdict(value))
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__} cannot be stored")


def told(error):
    """An exception as the model reads it, with the line of the script it came from."""
    if isinstance(error, Refused):
        return str(error)
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == SCRIPT_FILE:
            line = frame.tb_lineno
        frame = frame.tb_next
    if isinstance(error, SyntaxError) and error.filename == SCRIPT_FILE:
        return f"SyntaxError: {error.msg} (line {error.lineno} of the script)"
    place = f" (line {line} of the script)" if line else ""
    return f"{type(error).__name__}: {error}{place}"


def answered(line, real):
    try:
        request = json.loads(line)
        if request["op"] == "check":
            return {"kind": "checked", "missing": missing(request["dependencies"])}
        # The kernel ends the process even when nobody is left who would.
        signal.alarm(math.ceil(request["seconds"]) + 1)
        if request["op"] == "describe":
            return describe(load(request, real), real)
        return call(request, real)
    except BaseException as error:
        # Also SystemExit and MemoryError: a script must not end without an answer.
        return {"kind": "failed", "error": told(error)}


def main():
    # What a script prints must not be taken for an answer.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    source = os.fdopen(os.dup(0), "r", encoding="utf-8", newline="\n")
    os.dup2(nowhere, 0)
    real = supply()
    out.write("ready\n")
    out.flush()
    os.dup2(nowhere, 2)
    line = source.readline()
    if line:
        out.write(json.dumps(answered(line, real)) + "\n")
        out.flush()
    # Threads and exit handlers of a script have nothing more to say.
    os._exit(0)


if __name__ == "__main__":
    main()
