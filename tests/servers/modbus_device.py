"""Test server: Schneider PM2100 power meters behind one Modbus TCP port, or on
a serial line.

Prints `listening PORT` once bound, or `listening PATH` once the serial device
is open, and then `values {json}`: what the registers hold, by attribute name,
in the meter's units (A, V, kW, kWh, Hz). Runs until it is killed. Needs
pymodbus 3.16 and pyserial; install.sh pins the versions.

Requests are answered as by a real line, with --port behind a TCP gateway:
- units of --unit: values for function 3, exception 1 for other functions,
  exception 2 for other addresses;
- units of --silent: nothing at all;
- any other unit: exception 11, the gateway's "target device did not respond";
  with --serial nothing at all, as there is no gateway.

Of requests that arrive together, pymodbus answers only the first: a client
must wait for the answer, or for its timeout, before it sends the next one.
"""

import argparse
import asyncio
import json
import struct

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

READ_HOLDING_REGISTERS = 3

# The length is odd on purpose: its last register is half text, half padding.
MODEL = "METSEPM2230"
MODEL_ADDRESS, MODEL_REGISTERS = 49, 20

# Addresses on the wire, one less than in the vendor's list. Each value is exact
# as a 32-bit float.
FLOATS = {
    "energy_total": (2699, 12345.75),
    "active_energy_received": (2701, 345.25),
    "active_energy_delivered_and_received": (2703, 12691.0),
    "ac_l1_current": (2999, 10.5),
    "ac_l2_current": (3001, 11.5),
    "ac_l3_current": (3003, 12.5),
    "ac_l1_voltage": (3027, 230.5),
    "ac_l2_voltage": (3029, 231.5),
    "ac_l3_voltage": (3031, 232.5),
    "ac_l1_power": (3053, 2.25),
    "ac_l2_power": (3055, 2.5),
    "ac_l3_power": (3057, 2.75),
    "total_power": (3059, 7.5),
    "ac_frequency": (3109, 50.03125),
}


def registers(address: int, data: bytes) -> SimData:
    """Places bytes at an address, high byte of each register first."""
    words = list(struct.unpack(f">{len(data) // 2}H", data))
    return SimData(address, values=words, datatype=DataType.REGISTERS)


async def meter_action(function: int, *_) -> ExcCodes | None:
    return None if function == READ_HOLDING_REGISTERS else ExcCodes.ILLEGAL_FUNCTION


async def gateway_action(*_) -> ExcCodes:
    return ExcCodes.GATEWAY_NO_RESPONSE


def meter(unit: int) -> SimDevice:
    memory = [registers(MODEL_ADDRESS, MODEL.encode().ljust(2 * MODEL_REGISTERS, b"\0"))]
    memory += [registers(address, struct.pack(">f", value)) for address, value in FLOATS.values()]
    return SimDevice(unit, memory, action=meter_action)


def missing_units() -> SimDevice:
    """Stands for all units that do not exist: pymodbus takes id 0 for them."""
    return SimDevice(0, SimData(0, count=65536, datatype=DataType.REGISTERS), action=gateway_action)


async def serve(port: int, serial: str | None, baud: int, units: list[int], silent: list[int]) -> None:
    def drop_silent(sending: bool, pdu):
        dropped = pdu.dev_id in silent or (serial and pdu.dev_id not in units)
        return None if not sending and dropped else pdu

    devices = [missing_units(), *(meter(unit) for unit in units)]
    if serial:
        server = ModbusSerialServer(devices, port=serial, baudrate=baud, trace_pdu=drop_silent)
    else:
        server = ModbusTcpServer(devices, address=("127.0.0.1", port), trace_pdu=drop_silent)
    await server.serve_forever(background=True)
    print("listening", serial or server.transport.sockets[0].getsockname()[1], flush=True)
    values = {"model": MODEL, **{name: value for name, (_, value) in FLOATS.items()}}
    print("values", json.dumps(values), flush=True)
    await server.serving


def main() -> None:
    parser = argparse.ArgumentParser(description="Schneider PM2100 meters over Modbus TCP or RTU, for tests.")
    line = parser.add_mutually_exclusive_group()
    line.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0, the default, picks a free one")
    line.add_argument("--serial", metavar="PATH", help="serve Modbus RTU on this serial device instead, 8N1")
    parser.add_argument("--baud", type=int, default=9600, help="baud rate of --serial, default 9600")
    parser.add_argument("--unit", type=int, action="append", help="unit id of a meter; repeatable, default 1")
    parser.add_argument("--silent", type=int, action="append", default=[], help="unit id that never answers; repeatable")
    given = parser.parse_args()
    try:
        asyncio.run(serve(given.port, given.serial, given.baud, given.unit or [1], given.silent))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
