"""Write Sandgate device drivers in Python.

A driver is one class in `driver.py`:

    from sandgate import Driver, command, every, modbus, send

    class Meter(Driver):
        def start(self):
            self.unit = modbus.Unit("line", self.configuration["connection"]["unit"])
            every(1.0, self.poll)

        def poll(self):
            words = self.unit.holding(0, 2)
            send(status="ok", power=words.f32(0))

        @command
        def set_limit(self, watts: int):
            self.unit.write(10, watts)
            return {"watts": watts}

Times are seconds. What goes wrong raises an `Error`; one that a driver does not
catch is told to the gateway: by a command as its answer, elsewhere in the log.
"""

from __future__ import annotations

import inspect
import json
import struct
import traceback
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Optional

from componentize_py_types import Err, Ok, Result
from wit_world import exports
from wit_world.exports import device_driver as _device_driver
from wit_world.imports import alerts as _alerts
from wit_world.imports import can as _can
from wit_world.imports import command_log as _command_log
from wit_world.imports import files as _files
from wit_world.imports import http as _http
from wit_world.imports import io as _io
from wit_world.imports import logging as _logging
from wit_world.imports import modbus as _modbus
from wit_world.imports import net as _net
from wit_world.imports import properties as _properties
from wit_world.imports import serial as _serial
from wit_world.imports import storage as _storage
from wit_world.imports import telemetry as _telemetry
from wit_world.imports import timers as _timers
from wit_world.imports import types as _types

__all__ = [
    "Alert", "Busy", "Driver", "Error", "Failed", "InvalidArgument", "TimedOut", "Unreachable", "Unsupported",
    "DeviceException", "NotGranted", "alerts", "alerts_unknown", "after", "can", "cancel", "command", "command_log", "every", "files", "http", "io", "log", "modbus",
    "net", "publish", "send", "serial", "storage",
]


class Error(Exception):
    """What went wrong, for people. In a command it becomes its answer."""


class InvalidArgument(Error):
    """An argument makes no sense for the device."""


class Unsupported(Error):
    """The device, or this model of it, cannot do that."""


class Busy(Error):
    """The device does something else now; try later."""


class Unreachable(Error):
    """The device does not answer."""


class TimedOut(Error):
    """The device did not do it in time."""


class Failed(Error):
    """Anything else."""


class DeviceException(Failed):
    """A Modbus unit refused with this exception code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the device refused: Modbus exception {code}")
        self.code = code


class NotGranted(Error):
    """The operator has not granted this, or the manifest does not request it."""


class Driver:
    """A device driver. The gateway makes one call at a time."""

    #: The device's id, unique in the gateway.
    device_id: str
    #: The configuration as the manifest declares it: bucket, parameter, value.
    configuration: dict[str, dict[str, Any]]
    #: Why the driver starts: "first-start", "restart" or "swap".
    reason: str
    #: What the version before packed with `snapshot`, after a swap.
    restored: Optional[Any] = None

    def start(self) -> None:
        """Begins: sets timers. After an error the gateway tries again later."""

    def configure(self) -> None:
        """Takes a new configuration, which is in `self.configuration`. After an error the old one stays."""
        raise Error("this driver takes its configuration at the start only; restart the device")

    def stop(self) -> None:
        """Ends."""

    def snapshot(self) -> Any:
        """Packs what the next version should know, as JSON; `None` for nothing."""
        return None


_COMMAND = "_sandgate_command"


def command(method: Callable) -> Callable:
    """Makes a method the command of its name. Its arguments are those of the manifest; what it returns, a dict or
    nothing, is the result."""
    setattr(method, _COMMAND, True)
    return method


# Values.

def _value(value: Any) -> Any:
    if value is None:
        return _types.Value_Unknown()
    if isinstance(value, bool):
        return _types.Value_Boolean(value)
    if isinstance(value, int):
        return _types.Value_Integer(value) if -2**63 <= value < 2**63 else _types.Value_Float(float(value))
    if isinstance(value, float):
        return _types.Value_Float(value) if value == value and abs(value) != float("inf") else _types.Value_Unknown()
    if isinstance(value, str):
        return _types.Value_Text(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return _types.Value_TextList(list(value))
    return _types.Value_Json(json.dumps(value))


def _attributes(values: dict[str, Any]) -> list:
    return [_types.Attribute(name, _value(value)) for name, value in values.items()]


def _sent(call: Callable[[], None]) -> None:
    try:
        call()
    except Err as error:
        problem = error.value
        if isinstance(problem, _telemetry.SendError_Rejected):
            # The host has logged each; the others are on their way.
            raise Failed("; ".join(f"{it.name}: {it.reason}" for it in problem.value)) from None
        raise Failed({
            _telemetry.SendError_RateLimited: "sends more often than its limit allows",
            _telemetry.SendError_InvalidTime: "the time is not a date after 1970",
        }.get(type(problem), "the sample is too large")) from None


def send(values: Optional[dict[str, Any]] = None, /, *, at: Optional[float] = None, **more: Any) -> None:
    """Sends telemetry that was measured together; `at` in seconds since 1970, or now. `None` says that a value is not
    known."""
    attributes = _attributes({**(values or {}), **more})
    sample = _telemetry.Sample(time=None if at is None else at * 1000.0, attributes=attributes)
    _sent(lambda: _telemetry.send(sample))


def publish(values: Optional[dict[str, Any]] = None, /, **more: Any) -> None:
    """Publishes properties."""
    _sent(lambda: _properties.publish(_attributes({**(values or {}), **more})))


@dataclass
class Alert:
    """An active alert, with what happened this time."""

    id: str
    details: Optional[str] = None


def alerts(active: Iterable[str | Alert]) -> None:
    """Replaces the set of active alerts; an empty one says that nothing is wrong."""
    given = [it if isinstance(it, Alert) else Alert(it) for it in active]
    try:
        _alerts.set([_alerts.Alert(it.id, it.details) for it in given])
    except Err as error:
        raise Failed("; ".join(f"{it.name}: {it.reason}" for it in error.value)) from None


def alerts_unknown() -> None:
    """Says that it is not known whether anything is wrong."""
    _alerts.unknown()


class log:
    """The device's log."""

    @staticmethod
    def debug(text: str) -> None:
        _logging.log(_logging.Level.DEBUG, text)

    @staticmethod
    def info(text: str) -> None:
        _logging.log(_logging.Level.INFO, text)

    @staticmethod
    def warning(text: str) -> None:
        _logging.log(_logging.Level.WARNING, text)

    @staticmethod
    def error(text: str) -> None:
        _logging.log(_logging.Level.ERROR, text)


def command_log(text: str) -> None:
    """Tells whoever runs the command how far it is."""
    _command_log.write(text)


# Timers.

_jobs: dict[int, Callable[[], None]] = {}
_once: set[int] = set()


def _timer(set_timer: Callable[[float], int], seconds: float, job: Callable[[], None]) -> int:
    try:
        timer = set_timer(seconds * 1000.0)
    except Err as error:
        if isinstance(error.value, _timers.TimerError_TooMany):
            raise Failed(f"expected at most {error.value.value} timers") from None
        raise Failed(f"expected a time of 1 ms to 365 days, found {seconds} s") from None
    _jobs[timer] = job
    return timer


def every(seconds: float, job: Callable[[], None]) -> int:
    """Calls a function every so often, first after that time."""
    return _timer(_timers.every, seconds, job)


def after(seconds: float, job: Callable[[], None]) -> int:
    """Calls a function once."""
    timer = _timer(_timers.after, seconds, job)
    _once.add(timer)
    return timer


def cancel(timer: int) -> None:
    """Forgets a timer."""
    _jobs.pop(timer, None)
    _once.discard(timer)
    _timers.cancel(timer)


class storage:
    """Small persistent values of the device, as JSON."""

    @staticmethod
    def _call(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Err as error:
            problem = error.value
            if isinstance(problem, _storage.StorageError_InvalidKey):
                raise Failed("expected a key of 1 to 256 bytes") from None
            if isinstance(problem, _storage.StorageError_TooLarge):
                raise Failed(f"expected at most {problem.value} bytes") from None
            raise Failed(problem.value) from None

    @staticmethod
    def get(key: str, default: Any = None) -> Any:
        """Reads a value."""
        found = storage._call(lambda: _storage.get(key))
        return default if found is None else json.loads(found)

    @staticmethod
    def set(key: str, value: Any) -> None:
        """Writes a value; it is on disk when this returns."""
        storage._call(lambda: _storage.set(key, json.dumps(value).encode()))

    @staticmethod
    def delete(key: str) -> None:
        """Removes a value."""
        storage._call(lambda: _storage.delete(key))

    @staticmethod
    def keys() -> list[str]:
        """Lists all keys."""
        return storage._call(_storage.keys)


class files:
    """Files that travel in the driver."""

    @staticmethod
    def names() -> list[str]:
        """Lists them."""
        return _files.names()

    @staticmethod
    def read(name: str) -> Optional[bytes]:
        """Reads one."""
        return _files.read(name)


# Modbus.

class Registers(list):
    """Registers that were read together, and what they mean. Places count from 0."""

    def _bytes(self, place: int, count: int, swapped: bool) -> bytes:
        words = self[place:place + count]
        if len(words) < count:
            raise Failed(f"expected {count} registers from place {place} on, found {len(words)}")
        return struct.pack(f">{count}H", *(reversed(words) if swapped else words))

    def _number(self, form: str, place: int, swapped: bool) -> Any:
        count = struct.calcsize(form) // 2
        return struct.unpack(form, self._bytes(place, count, swapped))[0]

    def u16(self, place: int) -> int:
        return self[place]

    def i16(self, place: int) -> int:
        return self._number(">h", place, False)

    def u32(self, place: int, swapped: bool = False) -> int:
        return self._number(">I", place, swapped)

    def i32(self, place: int, swapped: bool = False) -> int:
        return self._number(">i", place, swapped)

    def u64(self, place: int, swapped: bool = False) -> int:
        return self._number(">Q", place, swapped)

    def i64(self, place: int, swapped: bool = False) -> int:
        return self._number(">q", place, swapped)

    def f32(self, place: int, swapped: bool = False) -> float:
        return self._number(">f", place, swapped)

    def f64(self, place: int, swapped: bool = False) -> float:
        return self._number(">d", place, swapped)

    def text(self, place: int, count: int) -> str:
        """Two characters in each register, up to the first zero."""
        return self._bytes(place, count, False).split(b"\0")[0].decode("ascii", "replace").strip()


def _modbus_error(problem: Any) -> Error:
    if isinstance(problem, _modbus.ModbusError_TimedOut):
        return Unreachable("the unit does not answer")
    if isinstance(problem, _modbus.ModbusError_DeviceException):
        return DeviceException(problem.value)
    if isinstance(problem, _modbus.ModbusError_Busy):
        return Busy("the line is busy")
    if isinstance(problem, _modbus.ModbusError_NotGranted):
        return NotGranted(problem.value)
    if isinstance(problem, _modbus.ModbusError_Unavailable):
        return Unreachable(problem.value)
    if isinstance(problem, _modbus.ModbusError_InvalidArgument):
        return InvalidArgument(problem.value)
    return Failed(problem.value)


def _within(value: Any, most: int, what: str) -> int:
    """A whole number of 0 to `most`; anything else would end the driver."""
    if not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidArgument(f"expected {what} of 0 to {most}, found {value!r}")
    return value


class modbus:
    """Modbus lines that the gateway owns."""

    class Unit:
        """A unit on a line, or at `tcp://HOST:PORT`. Addresses are those on the wire: from 0."""

        def __init__(self, line: str, unit: int, timeout: Optional[float] = None, pause: float = 0.0) -> None:
            number = _within(unit, 255, "a unit")
            self._unit = self._call(lambda: _modbus.Unit.open(line, number))
            if timeout is not None:
                self._call(lambda: self._unit.set_timeout(timeout * 1000.0))
            if pause:
                self._call(lambda: self._unit.set_pause(pause * 1000.0))

        @staticmethod
        def _call(call: Callable[[], Any]) -> Any:
            try:
                return call()
            except Err as error:
                raise _modbus_error(error.value) from None

        def _ask(self, method: str, address: int, given: Any) -> Any:
            place = _within(address, 65535, "an address")
            return self._call(lambda: getattr(self._unit, method)(place, given))

        def holding(self, address: int, count: int = 1) -> Registers:
            """Reads holding registers (function 3)."""
            return Registers(self._ask("read_holding_registers", address, _within(count, 65535, "a count")))

        def input(self, address: int, count: int = 1) -> Registers:
            """Reads input registers (function 4)."""
            return Registers(self._ask("read_input_registers", address, _within(count, 65535, "a count")))

        def coils(self, address: int, count: int = 1) -> list[bool]:
            """Reads coils (function 1)."""
            return self._ask("read_coils", address, _within(count, 65535, "a count"))

        def discrete(self, address: int, count: int = 1) -> list[bool]:
            """Reads discrete inputs (function 2)."""
            return self._ask("read_discrete_inputs", address, _within(count, 65535, "a count"))

        def write(self, address: int, *words: int) -> None:
            """Writes holding registers: one with function 6, several with function 16."""
            given = [_within(word, 65535, "a register") for word in words]
            if len(given) == 1:
                self._ask("write_register", address, given[0])
            else:
                self._ask("write_registers", address, given)

        def write_coil(self, address: int, *values: bool) -> None:
            """Writes coils: one with function 5, several with function 15."""
            if len(values) == 1:
                self._ask("write_coil", address, bool(values[0]))
            else:
                self._ask("write_coils", address, [bool(value) for value in values])


# HTTP and TCP.

@dataclass
class Response:
    """A response; every status is one, also 404 and 500."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False, default=b"")

    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Failed(f"expected JSON: {error}") from None


class http:
    """HTTP to granted hosts; the gateway does TLS."""

    @staticmethod
    def request(method: str, url: str, body: bytes | str = b"", headers: Optional[dict[str, str]] = None,
                timeout: float = 10.0) -> Response:
        """Sends a request and waits for the whole response."""
        listed = [_http.Header(name, value) for name, value in (headers or {}).items()]
        encoded = body.encode() if isinstance(body, str) else body
        try:
            answer = _http.fetch(_http.Request(method, url, listed, encoded, timeout * 1000.0))
        except Err as error:
            problem = error.value
            if isinstance(problem, _http.HttpError_NotGranted):
                raise NotGranted(problem.value) from None
            if isinstance(problem, _http.HttpError_TimedOut):
                raise Unreachable("no response in time") from None
            if isinstance(problem, _http.HttpError_TooLarge):
                raise Failed(f"the response is larger than {problem.value} bytes") from None
            if isinstance(problem, _http.HttpError_InvalidRequest):
                raise InvalidArgument(problem.value) from None
            raise Unreachable(problem.value) from None
        return Response(answer.status, {it.name: it.value for it in answer.headers}, bytes(answer.body))

    @staticmethod
    def get(url: str, **more: Any) -> Response:
        return http.request("GET", url, **more)

    @staticmethod
    def post(url: str, body: bytes | str | dict | list = b"", **more: Any) -> Response:
        """Posts bytes, a text, or JSON."""
        if isinstance(body, (dict, list)):
            headers = {"content-type": "application/json", **(more.pop("headers", None) or {})}
            return http.request("POST", url, json.dumps(body), headers=headers, **more)
        return http.request("POST", url, body, **more)


@dataclass
class Frame:
    """A frame on a CAN bus: an id of 11 bits, or of 29 where `extended`, and at most 8 bytes."""

    id: int
    data: bytes
    extended: bool = False


def _frames(found: Iterable[Any]) -> list[Frame]:
    return [Frame(it.id, bytes(it.data), it.extended) for it in found]


class can:
    """CAN buses that the gateway owns."""

    class Monitor:
        """The latest frame of each id."""

        def __init__(self, monitor: Any) -> None:
            self._monitor = monitor

        def pop(self) -> list[Frame]:
            """Those that came since the last time, by id."""
            return _frames(self._monitor.pop())

    class Queue:
        """All frames."""

        def __init__(self, queue: Any) -> None:
            self._queue = queue

        def pop(self, limit: int = 1000) -> list[Frame]:
            """The oldest of them."""
            return _frames(self._queue.pop(_within(limit, 2**32 - 1, "a limit")))

        def dropped(self) -> int:
            """How many were dropped since this was asked last."""
            return self._queue.dropped()

    class Channel:
        """A bus."""

        def __init__(self, name: str) -> None:
            self._channel = self._call(lambda: _can.Channel.open(name))

        @staticmethod
        def _call(call: Callable[[], Any]) -> Any:
            try:
                return call()
            except Err as error:
                problem = error.value
                if isinstance(problem, _can.CanError_NotGranted):
                    raise NotGranted(problem.value) from None
                if isinstance(problem, _can.CanError_Unavailable):
                    raise Unreachable(problem.value) from None
                if isinstance(problem, _can.CanError_Busy):
                    raise Busy("the bus is busy") from None
                raise InvalidArgument(problem.value) from None

        def send(self, id: int, data: bytes, extended: bool = False) -> None:
            """Sends a frame."""
            frame = _can.Frame(_within(id, 2**29 - 1, "an id"), extended, bytes(data))
            self._call(lambda: self._channel.send(frame))

        def monitor(self, *ids: int) -> can.Monitor:
            """Keeps the latest frame of each of these ids, or of all."""
            given = [_within(id, 2**29 - 1, "an id") for id in ids]
            return can.Monitor(self._call(lambda: self._channel.monitor(given)))

        def queue(self, *ids: int, size: int = 1000, drop_newest: bool = False) -> can.Queue:
            """Keeps all frames with these ids, or all."""
            given = [_within(id, 2**29 - 1, "an id") for id in ids]
            overflow = _can.Overflow.DROP_NEWEST if drop_newest else _can.Overflow.DROP_OLDEST
            number = _within(size, 2**32 - 1, "a size")
            return can.Queue(self._call(lambda: self._channel.queue(given, number, overflow)))


class _Pin:
    def __init__(self, open: Callable[[str], Any], name: str) -> None:
        self._pin = self._call(lambda: open(name))

    @staticmethod
    def _call(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Err as error:
            problem = error.value
            if isinstance(problem, _io.IoError_NotGranted):
                raise NotGranted(problem.value) from None
            if isinstance(problem, _io.IoError_Unavailable):
                raise Unreachable(problem.value) from None
            raise InvalidArgument(problem.value) from None


class io:
    """Inputs and outputs of the gateway's machine."""

    class Output(_Pin):
        """A relay or another output."""

        def __init__(self, name: str) -> None:
            super().__init__(_io.Output.open, name)

        def get(self) -> bool:
            """Whether it is on."""
            return self._call(self._pin.get)

        def set(self, on: bool) -> None:
            """Switches it."""
            self._call(lambda: self._pin.set(bool(on)))

        def pulse(self, seconds: float) -> None:
            """Switches it over for that time, and then back; the gateway does so."""
            self._call(lambda: self._pin.pulse(seconds * 1000.0))

    class Input(_Pin):
        """A contact or another input."""

        def __init__(self, name: str) -> None:
            super().__init__(_io.Input.open, name)

        def get(self) -> bool:
            """Whether it is on."""
            return self._call(self._pin.get)

        def count(self) -> int:
            """How often it went on; the gateway counts."""
            return self._call(self._pin.count).count

        def set_count(self, count: int) -> None:
            """Lets it be counted from here."""
            given = _within(count, 2**64 - 1, "a count")
            self._call(lambda: self._pin.set_count(given))

        def set_debounce(self, seconds: float) -> None:
            """For how long a change has to last to be one."""
            self._call(lambda: self._pin.set_debounce(seconds * 1000.0))

    class Analog(_Pin):
        """A voltage, a current or a temperature."""

        def __init__(self, name: str) -> None:
            super().__init__(_io.Analog.open, name)

        def read(self) -> float:
            """What it is now: in V, A or degrees Celsius."""
            return self._call(self._pin.read)


def _serial_error(problem: Any) -> Error:
    if isinstance(problem, _serial.SerialError_TimedOut):
        return Unreachable("the device does not answer")
    if isinstance(problem, _serial.SerialError_Busy):
        return Busy("the port is busy")
    if isinstance(problem, _serial.SerialError_NotGranted):
        return NotGranted(problem.value)
    if isinstance(problem, _serial.SerialError_Unavailable):
        return Unreachable(problem.value)
    return InvalidArgument(problem.value)


class serial:
    """Serial ports that the gateway owns, for what is not Modbus."""

    class Port:
        """A port. Who uses it has it to itself until the call of the driver ends, or until `release`; 4 s at most."""

        def __init__(self, name: str, timeout: float = 1.0) -> None:
            self._port = self._call(lambda: _serial.Port.open(name))
            #: How long reads wait, in seconds.
            self.timeout = timeout

        @staticmethod
        def _call(call: Callable[[], Any]) -> Any:
            try:
                return call()
            except Err as error:
                raise _serial_error(error.value) from None

        def _read(self, method: str, *given: Any) -> bytes:
            return self._call(lambda: getattr(self._port, method)(*given, self.timeout * 1000.0))

        def write(self, data: bytes | str) -> None:
            """Writes at most 4096 bytes."""
            given = data.encode() if isinstance(data, str) else bytes(data)
            self._call(lambda: self._port.write(given))

        def read(self, limit: int = 4096) -> bytes:
            """What is there: at least one byte."""
            return self._read("read", _within(limit, 65536, "a limit"))

        def exactly(self, count: int) -> bytes:
            """So many bytes."""
            return self._read("read_exact", _within(count, 65536, "a count"))

        def until(self, delimiter: bytes, limit: int = 4096) -> bytes:
            """All up to the delimiter, and with it."""
            return self._read("read_until", bytes(delimiter), _within(limit, 65536, "a limit"))

        def line(self, limit: int = 4096) -> str:
            """The next line, without its end."""
            return self.until(b"\n", limit).decode(errors="replace").rstrip("\r\n")

        def frame(self, silence: float = 0.02, limit: int = 4096) -> bytes:
            """What comes until nothing has come for that time, in seconds."""
            return self._read("read_frame", silence * 1000.0, _within(limit, 65536, "a limit"))

        def discard(self) -> None:
            """Throws away what has arrived."""
            self._call(self._port.discard)

        def release(self) -> None:
            """Lets others have their turn."""
            self._port.release()


class net:
    """TCP to granted addresses."""

    class Connection:
        """An open connection, with a reader of lines."""

        def __init__(self, host: str, port: int, timeout: float = 5.0) -> None:
            self._timeout = timeout * 1000.0
            self._rest = b""
            self._connection = self._call(lambda: _net.TcpConnection.connect(host, port, self._timeout))

        @staticmethod
        def _call(call: Callable[[], Any]) -> Any:
            try:
                return call()
            except Err as error:
                problem = error.value
                if isinstance(problem, _net.NetError_NotGranted):
                    raise NotGranted(problem.value) from None
                if isinstance(problem, _net.NetError_InvalidArgument):
                    raise InvalidArgument(problem.value) from None
                words = {
                    _net.NetError_TimedOut: "nothing came in time",
                    _net.NetError_Refused: "the connection was refused",
                    _net.NetError_Closed: "the connection was closed",
                }.get(type(problem))
                raise Unreachable(words or str(getattr(problem, "value", problem))) from None

        def send(self, data: bytes | str) -> None:
            encoded = data.encode() if isinstance(data, str) else data
            self._call(lambda: self._connection.send(encoded, self._timeout))

        def receive(self, limit: int = 4096) -> bytes:
            """What is there: at least one byte."""
            if self._rest:
                found, self._rest = self._rest[:limit], self._rest[limit:]
                return found
            return bytes(self._call(lambda: self._connection.receive(limit, self._timeout)))

        def line(self, limit: int = 4096) -> str:
            """The next line, without its end."""
            while b"\n" not in self._rest:
                if len(self._rest) >= limit:
                    raise Failed(f"expected lines of at most {limit} bytes")
                self._rest += bytes(self._call(lambda: self._connection.receive(4096, self._timeout)))
            found, self._rest = self._rest.split(b"\n", 1)
            return found.rstrip(b"\r").decode("utf-8", "replace")


# The way to the contract. `sandgate build` makes the component of these two classes.

_driver_class: Optional[type[Driver]] = None
_driver: Optional[Driver] = None
_restored: Optional[Any] = None


def use(module: Any) -> None:
    """Finds the driver in a module; `sandgate build` calls it."""
    global _driver_class
    own = [it for it in vars(module).values()
           if inspect.isclass(it) and issubclass(it, Driver) and it.__module__ == module.__name__]
    if len(own) != 1:
        names = ", ".join(it.__name__ for it in own) or "none"
        raise SystemExit(f"{module.__name__}.py: expected one class that is a sandgate.Driver, found {names}")
    _driver_class = own[0]


def _told(error: BaseException) -> str:
    """What an error says; of one that is no `Error` also where it was, and the whole trace in the log."""
    if isinstance(error, Error):
        return str(error)
    log.debug(traceback.format_exc())
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {error}"


_ANSWERS = [
    (InvalidArgument, _device_driver.CommandError_InvalidArgument),
    (Unsupported, _device_driver.CommandError_Unsupported),
    (Busy, _device_driver.CommandError_Busy),
    (Unreachable, _device_driver.CommandError_DeviceUnreachable),
    (TimedOut, _device_driver.CommandError_TimedOut),
]


class DeviceDriver(exports.DeviceDriver):
    """The exports `device-driver`."""

    def start(self, context: Any) -> None:
        global _driver
        try:
            assert _driver_class is not None
            driver = _driver_class()
            driver.device_id = context.device_id
            driver.configuration = json.loads(context.configuration)
            driver.reason = context.reason.name.lower().replace("_", "-")
            driver.restored = _restored
            driver.start()
            _driver = driver
        except Exception as error:
            raise Err(_told(error)) from None

    def on_timer(self, id: int) -> None:
        job = _jobs.get(id)
        if id in _once:
            _once.discard(id)
            _jobs.pop(id, None)
        if job is None:
            return
        try:
            job()
        except Exception as error:
            raise Err(_told(error)) from None

    def handle_command(self, command: Any) -> list:
        method = getattr(_driver, command.name, None)
        if not getattr(method, _COMMAND, False):
            raise Err(_device_driver.CommandError_Unsupported(f"no command {command.name}"))
        try:
            result = method(**json.loads(command.raw))
            if result is None:
                return []
            return _attributes(result if isinstance(result, dict) else {"result": result})
        except Exception as error:
            kinds = (answer for kind, answer in _ANSWERS if isinstance(error, kind))
            raise Err(next(kinds, _device_driver.CommandError_Failed)(_told(error))) from None

    def configure(self, configuration: str) -> None:
        assert _driver is not None
        before = _driver.configuration
        try:
            _driver.configuration = json.loads(configuration)
            _driver.configure()
        except Exception as error:
            _driver.configuration = before
            raise Err(_told(error)) from None

    def stop(self) -> None:
        try:
            if _driver is not None:
                _driver.stop()
        except Exception as error:
            log.error(f"stop: {_told(error)}")


class Migration(exports.Migration):
    """The exports `migration`."""

    def snapshot(self) -> bytes:
        try:
            packed = None if _driver is None else _driver.snapshot()
            return b"" if packed is None else json.dumps(packed).encode()
        except Exception as error:
            log.error(f"snapshot: {_told(error)}")
            return b""

    def restore(self, state: bytes) -> None:
        global _restored
        try:
            _restored = json.loads(bytes(state))
        except ValueError as error:
            raise Err(f"expected JSON from the version before: {error}") from None
