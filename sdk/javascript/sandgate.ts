// Write Sandgate device drivers in JavaScript or TypeScript.
//
// A driver is the default export of `driver.js` or `driver.ts`:
//
//     import { Driver, every, send, Unit } from "./sandgate";
//
//     export default class Meter extends Driver {
//       start() {
//         this.unit = new Unit("line", this.configuration.connection.unit);
//         every(1, () => this.poll());
//       }
//
//       poll() {
//         send({ status: "ok", power: this.unit.holding(0, 2).f32(0) });
//       }
//
//       commands = {
//         set_limit: ({ watts }) => {
//           this.unit.write(10, watts);
//           return { watts };
//         },
//       };
//     }
//
// Times are seconds. Calls that wait are ordinary calls: nothing is `async`.
// What goes wrong throws a `DriverError`; one that a driver does not catch is told
// to the gateway: by a command as its answer, elsewhere in the log.

// The contract; it is there in a component only.
// @ts-ignore
import alertsHost from "sandgate:driver/alerts@0.1.3";
// @ts-ignore
import canHost from "sandgate:driver/can@0.1.3";
// @ts-ignore
import commandLogHost from "sandgate:driver/command-log@0.1.3";
// @ts-ignore
import filesHost from "sandgate:driver/files@0.1.3";
// @ts-ignore
import httpHost from "sandgate:driver/http@0.1.3";
// @ts-ignore
import ioHost from "sandgate:driver/io@0.1.3";
// @ts-ignore
import loggingHost from "sandgate:driver/logging@0.1.3";
// @ts-ignore
import modbusHost from "sandgate:driver/modbus@0.1.3";
// @ts-ignore
import netHost from "sandgate:driver/net@0.1.3";
// @ts-ignore
import propertiesHost from "sandgate:driver/properties@0.1.3";
// @ts-ignore
import serialHost from "sandgate:driver/serial@0.1.3";
// @ts-ignore
import storageHost from "sandgate:driver/storage@0.1.3";
// @ts-ignore
import telemetryHost from "sandgate:driver/telemetry@0.1.3";
// @ts-ignore
import timersHost from "sandgate:driver/timers@0.1.3";

/** What can be sent: `null` and numbers that are none say that a value is not known. */
export type Value = null | boolean | number | string | string[] | { [key: string]: any } | any[];
/** Values by their names in the manifest. */
export type Values = { [name: string]: Value };

/** How an error answers a command. */
export type Kind = "invalid-argument" | "unsupported" | "busy" | "device-unreachable" | "timed-out" | "failed";

/** What went wrong, for people. */
export class DriverError extends Error {
  kind: Kind;
  /** The exception code of a Modbus unit that refused. */
  exception?: number;

  constructor(message: string, kind: Kind = "failed") {
    super(message);
    this.kind = kind;
  }
}

/** Calls the contract; what it throws becomes a `DriverError`. */
function asked<T>(call: () => T, told: (problem: any) => DriverError): T {
  try {
    return call();
  } catch (error: any) {
    if (error instanceof DriverError || error?.payload === undefined) throw error;
    throw told(error.payload);
  }
}

// Text and bytes: the engine has no TextEncoder.

/** A text as UTF-8. */
export function encode(text: string): Uint8Array {
  const bytes: number[] = [];
  for (const char of text) {
    let code = char.codePointAt(0)!;
    if (code >= 0xd800 && code <= 0xdfff) code = 0xfffd;
    if (code < 0x80) bytes.push(code);
    else if (code < 0x800) bytes.push(0xc0 | (code >> 6), 0x80 | (code & 63));
    else if (code < 0x10000) bytes.push(0xe0 | (code >> 12), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
    else bytes.push(0xf0 | (code >> 18), 0x80 | ((code >> 12) & 63), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
  }
  return new Uint8Array(bytes);
}

/** UTF-8 as a text; what is none becomes U+FFFD. */
export function decode(bytes: ArrayLike<number>): string {
  let text = "";
  for (let place = 0; place < bytes.length; ) {
    const first = bytes[place]!;
    const more = first < 0x80 ? 0 : first >= 0xc2 && first < 0xe0 ? 1 : first >= 0xe0 && first < 0xf0 ? 2 : first >= 0xf0 && first < 0xf5 ? 3 : -1;
    let code = more <= 0 ? first : first & (0x3f >> more);
    let taken = 1;
    while (taken <= more && (bytes[place + taken]! & 0xc0) === 0x80) code = (code << 6) | (bytes[place + taken++]! & 0x3f);
    const least = [0, 0x80, 0x800, 0x10000][more] ?? 0;
    const isRight = more >= 0 && taken === more + 1 && code >= least && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
    text += isRight ? String.fromCodePoint(code) : "\ufffd";
    place += taken;
  }
  return text;
}

/** A driver. The gateway makes one call at a time. */
export abstract class Driver {
  /** The device's id, unique in the gateway. */
  deviceId = "";
  /** The configuration as the manifest declares it: bucket, parameter, value. */
  configuration: { [bucket: string]: { [parameter: string]: any } } = {};
  /** Why the driver starts. */
  reason: "first-start" | "restart" | "swap" = "first-start";
  /** What the version before packed with `snapshot`, after a swap. */
  restored: any = undefined;
  /** The commands of the manifest: each gets its arguments and returns its result, or nothing. */
  commands: { [name: string]: (args: any) => Values | Value | void } = {};

  /** Begins: sets timers. After an error the gateway tries again later. */
  abstract start(): void;
  /** Takes a new configuration, which is in `this.configuration`. After an error the old one stays. */
  configure(): void {
    throw new DriverError("this driver takes its configuration at the start only; restart the device");
  }
  /** Ends. */
  stop(): void {}
  /** Packs what the next version should know, as JSON. */
  snapshot(): any {
    return undefined;
  }
}

function value(given: any): any {
  if (given === null || given === undefined) return { tag: "unknown" };
  if (typeof given === "boolean") return { tag: "boolean", val: given };
  if (typeof given === "bigint") return value(Number(given));
  if (typeof given === "number") {
    if (!Number.isFinite(given)) return { tag: "unknown" };
    return { tag: Number.isSafeInteger(given) ? "integer" : "float", val: given };
  }
  if (typeof given === "string") return { tag: "text", val: given };
  if (Array.isArray(given) && given.every((item) => typeof item === "string")) return { tag: "text-list", val: given };
  return { tag: "json", val: JSON.stringify(given) };
}

const attributes = (values: Values) => Object.entries(values).map(([name, given]) => ({ name, value: value(given) }));

const rejected = (list: any[]) => new DriverError(list.map((it) => `${it.name}: ${it.reason}`).join("; "));

function notSent(problem: any): DriverError {
  if (problem.tag === "rejected") return rejected(problem.val);
  if (problem.tag === "rate-limited") return new DriverError("sends more often than its limit allows");
  if (problem.tag === "invalid-time") return new DriverError("the time is not a date after 1970");
  return new DriverError(`the sample is larger than ${problem.val} bytes`);
}

/** Sends telemetry that was measured together, now or at a time. */
export function send(values: Values, at?: Date): void {
  const time = at === undefined ? null : at.getTime();
  asked(() => telemetryHost.send({ time, attributes: attributes(values) }), notSent);
}

/** Publishes properties. */
export function publish(values: Values): void {
  asked(() => propertiesHost.publish(attributes(values)), notSent);
}

/** Replaces the set of active alerts, ids or ids with details; an empty one says that nothing is wrong. */
export function alerts(active: (string | { id: string; details?: string })[]): void {
  const list = active.map((it) => (typeof it === "string" ? { id: it, details: null } : { id: it.id, details: it.details ?? null }));
  asked(() => alertsHost.set(list), rejected);
}

/** Says that it is not known whether anything is wrong. */
export function alertsUnknown(): void {
  alertsHost.unknown();
}

/** The device's log. */
export const log = {
  debug: (text: string): void => loggingHost.log("debug", text),
  info: (text: string): void => loggingHost.log("info", text),
  warning: (text: string): void => loggingHost.log("warning", text),
  error: (text: string): void => loggingHost.log("error", text),
};

/** Tells whoever runs the command how far it is. */
export function commandLog(text: string): void {
  commandLogHost.write(text);
}

const jobs = new Map<number, { run: () => void; isOnce: boolean }>();

function timer(seconds: number, set: (milliseconds: number) => number, run: () => void, isOnce: boolean): number {
  const id = asked(
    () => set(seconds * 1000),
    (problem) =>
      new DriverError(problem.tag === "too-many" ? `expected at most ${problem.val} timers` : `expected a time of 1 ms to 365 days, found ${seconds} s`),
  );
  jobs.set(id, { run, isOnce });
  return id;
}

/** Calls a function every so often, first after that time. */
export const every = (seconds: number, run: () => void): number => timer(seconds, timersHost.every, run, false);
/** Calls a function once. */
export const after = (seconds: number, run: () => void): number => timer(seconds, timersHost.after, run, true);
/** Forgets a timer. */
export function cancel(id: number): void {
  jobs.delete(id);
  timersHost.cancel(id);
}

const notStored = (problem: any) =>
  new DriverError(problem.tag === "invalid-key" ? "expected a key of 1 to 256 bytes" : problem.tag === "too-large" ? `expected at most ${problem.val} bytes` : problem.val);

/** Small persistent values of the device, as JSON. */
export const storage = {
  get(key: string): any {
    const found = asked<any>(() => storageHost.get(key), notStored);
    return found === null || found === undefined ? undefined : JSON.parse(decode(found));
  },
  set(key: string, given: any): void {
    asked(() => storageHost.set(key, encode(JSON.stringify(given))), notStored);
  },
  delete(key: string): void {
    asked(() => storageHost.delete(key), notStored);
  },
  keys: (): string[] => asked<string[]>(() => storageHost.keys(), notStored),
};

/** Files that travel in the driver. */
export const files = {
  names: (): string[] => filesHost.names(),
  read(name: string): Uint8Array | undefined {
    const found = filesHost.read(name);
    return found === null || found === undefined ? undefined : Uint8Array.from(found);
  },
};

/** Registers that were read together, and what they mean. Places count from 0. */
export class Registers {
  constructor(readonly words: number[]) {}

  private view(place: number, count: number, swapped: boolean): DataView {
    const words = this.words.slice(place, place + count);
    if (words.length < count) throw new DriverError(`expected ${count} registers from place ${place} on, found ${words.length}`);
    if (swapped) words.reverse();
    const view = new DataView(new ArrayBuffer(count * 2));
    words.forEach((word, at) => view.setUint16(at * 2, word));
    return view;
  }

  u16 = (place: number): number => this.view(place, 1, false).getUint16(0);
  i16 = (place: number): number => this.view(place, 1, false).getInt16(0);
  u32 = (place: number, swapped = false): number => this.view(place, 2, swapped).getUint32(0);
  i32 = (place: number, swapped = false): number => this.view(place, 2, swapped).getInt32(0);
  /** Exact up to 2^53. */
  u64 = (place: number, swapped = false): number => Number(this.view(place, 4, swapped).getBigUint64(0));
  /** Exact up to 2^53. */
  i64 = (place: number, swapped = false): number => Number(this.view(place, 4, swapped).getBigInt64(0));
  f32 = (place: number, swapped = false): number => this.view(place, 2, swapped).getFloat32(0);
  f64 = (place: number, swapped = false): number => this.view(place, 4, swapped).getFloat64(0);
  /** Two characters in each register, up to the first zero. */
  text(place: number, count: number): string {
    const view = this.view(place, count, false);
    const bytes = Array.from({ length: count * 2 }, (_, at) => view.getUint8(at));
    const end = bytes.indexOf(0);
    return String.fromCharCode(...(end < 0 ? bytes : bytes.slice(0, end))).trim();
  }
}

function modbusProblem(problem: any): DriverError {
  switch (problem.tag) {
    case "timed-out":
      return new DriverError("the unit does not answer", "device-unreachable");
    case "busy":
      return new DriverError("the line is busy", "busy");
    case "unavailable":
      return new DriverError(problem.val, "device-unreachable");
    case "invalid-argument":
      return new DriverError(problem.val, "invalid-argument");
    case "device-exception": {
      const error = new DriverError(`the device refused: Modbus exception ${problem.val}`);
      error.exception = problem.val;
      return error;
    }
    default:
      return new DriverError(problem.val);
  }
}

/** A whole number of 0 to `most`; anything else would be sent as another one. */
function within(given: number, most: number, what: string): number {
  if (!Number.isInteger(given) || given < 0 || given > most) {
    throw new DriverError(`expected ${what} of 0 to ${most}, found ${given}`, "invalid-argument");
  }
  return given;
}

const place = (address: number): number => within(address, 65535, "an address");
const number = (count: number): number => within(count, 65535, "a count");

/** A Modbus unit on a line, or at `tcp://HOST:PORT`. Addresses are those on the wire: from 0. */
export class Unit {
  private unit: any;

  constructor(line: string, unit: number, options: { timeout?: number; pause?: number } = {}) {
    this.unit = asked(() => modbusHost.Unit.open(line, within(unit, 255, "a unit")), modbusProblem);
    if (options.timeout !== undefined) this.ask((it) => it.setTimeout(options.timeout! * 1000));
    if (options.pause !== undefined) this.ask((it) => it.setPause(options.pause! * 1000));
  }

  private ask<T>(call: (unit: any) => T): T {
    return asked(() => call(this.unit), modbusProblem);
  }

  /** Reads holding registers (function 3). */
  holding = (address: number, count = 1): Registers => new Registers(Array.from(this.ask((it) => it.readHoldingRegisters(place(address), number(count)) as number[])));
  /** Reads input registers (function 4). */
  input = (address: number, count = 1): Registers => new Registers(Array.from(this.ask((it) => it.readInputRegisters(place(address), number(count)) as number[])));
  /** Reads coils (function 1). */
  coils = (address: number, count = 1): boolean[] => this.ask((it) => it.readCoils(place(address), number(count)));
  /** Reads discrete inputs (function 2). */
  discrete = (address: number, count = 1): boolean[] => this.ask((it) => it.readDiscreteInputs(place(address), number(count)));
  /** Writes holding registers: one with function 6, several with function 16. */
  write(address: number, ...words: number[]): void {
    const given = words.map((word) => within(word, 65535, "a register"));
    this.ask((it) => (given.length === 1 ? it.writeRegister(place(address), given[0]) : it.writeRegisters(place(address), given)));
  }
  /** Writes coils: one with function 5, several with function 15. */
  writeCoil(address: number, ...values: boolean[]): void {
    this.ask((it) => (values.length === 1 ? it.writeCoil(place(address), values[0]) : it.writeCoils(place(address), values)));
  }
}

function webProblem(problem: any): DriverError {
  if (problem.tag === "timed-out") return new DriverError("no response in time", "device-unreachable");
  if (problem.tag === "too-large") return new DriverError(`the response is larger than ${problem.val} bytes`);
  if (problem.tag === "invalid-request") return new DriverError(problem.val, "invalid-argument");
  if (problem.tag === "not-granted") return new DriverError(problem.val);
  return new DriverError(problem.val, "device-unreachable");
}

/** A response; every status is one, also 404 and 500. */
export class Response {
  constructor(readonly status: number, readonly headers: { [name: string]: string }, readonly body: Uint8Array) {}
  text = (): string => decode(this.body);
  json(): any {
    try {
      return JSON.parse(this.text());
    } catch (error: any) {
      throw new DriverError(`expected JSON: ${error.message}`);
    }
  }
}

/** A request: a text, bytes, or something for JSON as its body; the time-out in seconds. */
export type RequestOptions = { body?: string | Uint8Array | object; headers?: { [name: string]: string }; timeout?: number };

/** HTTP to granted hosts; the gateway does TLS. */
export const http = {
  request(method: string, url: string, { body, headers = {}, timeout = 10 }: RequestOptions = {}): Response {
    const isJson = typeof body === "object" && !(body instanceof Uint8Array);
    const all: { [name: string]: string } = isJson ? { "content-type": "application/json", ...headers } : headers;
    const bytes = body === undefined ? new Uint8Array() : body instanceof Uint8Array ? body : encode(isJson ? JSON.stringify(body) : (body as string));
    const list = Object.entries(all).map(([name, text]) => ({ name, value: text }));
    const answer = asked<any>(() => httpHost.fetch({ method, url, headers: list, body: bytes, timeout: timeout * 1000 }), webProblem);
    const found = Object.fromEntries(answer.headers.map((it: any) => [it.name, it.value]));
    return new Response(answer.status, found, Uint8Array.from(answer.body));
  },
  get: (url: string, options: RequestOptions = {}): Response => http.request("GET", url, options),
  post: (url: string, body: RequestOptions["body"], options: RequestOptions = {}): Response => http.request("POST", url, { ...options, body }),
};

function tcpProblem(problem: any): DriverError {
  if (problem.tag === "not-granted") return new DriverError(problem.val);
  if (problem.tag === "invalid-argument") return new DriverError(problem.val, "invalid-argument");
  const words: { [tag: string]: string } = { "timed-out": "nothing came in time", refused: "the connection was refused", closed: "the connection was closed" };
  return new DriverError(words[problem.tag] ?? String(problem.val), "device-unreachable");
}

/** An open TCP connection to a granted address, with a reader of lines. */
export class Connection {
  private connection: any;
  private rest: number[] = [];
  private timeout: number;

  constructor(host: string, port: number, timeout = 5) {
    this.timeout = timeout * 1000;
    this.connection = asked(() => netHost.TcpConnection.connect(host, port, this.timeout), tcpProblem);
  }

  send(data: string | Uint8Array): void {
    asked(() => this.connection.send(typeof data === "string" ? encode(data) : data, this.timeout), tcpProblem);
  }

  /** What is there: at least one byte. */
  receive(limit = 4096): Uint8Array {
    if (this.rest.length > 0) return Uint8Array.from(this.rest.splice(0, limit));
    return Uint8Array.from(asked<any>(() => this.connection.receive(limit, this.timeout), tcpProblem));
  }

  /** The next line, without its end. */
  line(limit = 4096): string {
    for (;;) {
      const end = this.rest.indexOf(10);
      if (end >= 0) return decode(this.rest.splice(0, end + 1).slice(0, end)).replace(/\r$/, "");
      if (this.rest.length >= limit) throw new DriverError(`expected lines of at most ${limit} bytes`);
      this.rest.push(...Array.from(asked<any>(() => this.connection.receive(4096, this.timeout), tcpProblem) as number[]));
    }
  }
}

function canProblem(problem: any): DriverError {
  if (problem.tag === "not-granted") return new DriverError(problem.val);
  if (problem.tag === "invalid-argument") return new DriverError(problem.val, "invalid-argument");
  return problem.tag === "busy" ? new DriverError("the bus is busy", "busy") : new DriverError(problem.val, "device-unreachable");
}

/** A frame on a CAN bus: an id of 11 bits, or of 29 where `extended`, and at most 8 bytes. */
export type Frame = { id: number; data: Uint8Array; extended?: boolean };

const framesOf = (found: any[]): Frame[] => Array.from(found).map((it) => ({ id: it.id, data: Uint8Array.from(it.data), extended: it.extended }));
const canId = (id: number): number => within(id, 0x1fffffff, "an id");

/** A CAN bus that the gateway owns. */
export class CanChannel {
  private channel: any;
  constructor(name: string) {
    this.channel = asked(() => canHost.Channel.open(name), canProblem);
  }
  /** Sends a frame. */
  send({ id, data, extended = false }: Frame): void {
    asked(() => this.channel.send({ id: canId(id), extended, data }), canProblem);
  }
  /** Keeps the latest frame of each of these ids, or of all; `pop` gives those since the last time. */
  monitor(...ids: number[]): { pop: () => Frame[] } {
    const monitor = asked<any>(() => this.channel.monitor(ids.map(canId)), canProblem);
    return { pop: () => framesOf(monitor.pop()) };
  }
  /** Keeps all frames with these ids, or all. */
  queue(ids: number[], size = 1000, overflow: "drop-oldest" | "drop-newest" = "drop-oldest"): { pop: (limit?: number) => Frame[]; dropped: () => number } {
    const queue = asked<any>(() => this.channel.queue(ids.map(canId), within(size, 0xffffffff, "a size"), overflow), canProblem);
    return { pop: (limit = 1000) => framesOf(queue.pop(limit)), dropped: () => Number(queue.dropped()) };
  }
}

function pinProblem(problem: any): DriverError {
  if (problem.tag === "not-granted") return new DriverError(problem.val);
  return new DriverError(problem.val, problem.tag === "invalid-argument" ? "invalid-argument" : "device-unreachable");
}

/** A relay or another output of the gateway's machine. */
export class Output {
  private pin: any;
  constructor(name: string) {
    this.pin = asked(() => ioHost.Output.open(name), pinProblem);
  }
  /** Whether it is on. */
  get = (): boolean => asked<boolean>(() => this.pin.get(), pinProblem);
  /** Switches it. */
  set(on: boolean): void {
    asked(() => this.pin.set(on), pinProblem);
  }
  /** Switches it over for that time, and then back; the gateway does so. */
  pulse(seconds: number): void {
    asked(() => this.pin.pulse(seconds * 1000), pinProblem);
  }
}

/** A contact or another input of the gateway's machine. */
export class Input {
  private pin: any;
  constructor(name: string) {
    this.pin = asked(() => ioHost.Input.open(name), pinProblem);
  }
  /** Whether it is on. */
  get = (): boolean => asked<boolean>(() => this.pin.get(), pinProblem);
  /** How often it went on; the gateway counts. Exact up to 2^53. */
  count = (): number => Number(asked<any>(() => this.pin.count(), pinProblem).count);
  /** Lets it be counted from here. */
  setCount(count: number): void {
    asked(() => this.pin.setCount(within(count, Number.MAX_SAFE_INTEGER, "a count")), pinProblem);
  }
  /** For how long a change has to last to be one. */
  setDebounce(seconds: number): void {
    asked(() => this.pin.setDebounce(seconds * 1000), pinProblem);
  }
}

/** An analog input of the gateway's machine. */
export class Analog {
  private pin: any;
  constructor(name: string) {
    this.pin = asked(() => ioHost.Analog.open(name), pinProblem);
  }
  /** What it is now: in V, A or degrees Celsius. */
  read = (): number => asked<number>(() => this.pin.read(), pinProblem);
}

function serialProblem(problem: any): DriverError {
  if (problem.tag === "not-granted") return new DriverError(problem.val);
  if (problem.tag === "invalid-argument") return new DriverError(problem.val, "invalid-argument");
  if (problem.tag === "busy") return new DriverError("the port is busy", "busy");
  return new DriverError(problem.tag === "timed-out" ? "the device does not answer" : problem.val, "device-unreachable");
}

const most = (bytes: number): number => within(bytes, 65536, "a number of bytes");

/**
 * A serial port, for what is not Modbus. Who uses it has it to itself until the
 * call of the driver ends, or until `release`; 4 s at most.
 */
export class SerialPort {
  private port: any;

  /** `timeout` is how long reads wait, in seconds. */
  constructor(name: string, public timeout = 1) {
    this.port = asked(() => serialHost.Port.open(name), serialProblem);
  }

  private bytes(call: (port: any, timeout: number) => any): Uint8Array {
    return Uint8Array.from(asked<any>(() => call(this.port, this.timeout * 1000), serialProblem));
  }

  /** Writes at most 4096 bytes. */
  write(data: string | Uint8Array): void {
    asked(() => this.port.write(typeof data === "string" ? encode(data) : data), serialProblem);
  }
  /** What is there: at least one byte. */
  read = (limit = 4096): Uint8Array => this.bytes((port, time) => port.read(most(limit), time));
  /** So many bytes. */
  exactly = (count: number): Uint8Array => this.bytes((port, time) => port.readExact(most(count), time));
  /** All up to the delimiter, and with it. */
  until = (delimiter: Uint8Array, limit = 4096): Uint8Array => this.bytes((port, time) => port.readUntil(delimiter, most(limit), time));
  /** The next line, without its end. */
  line = (limit = 4096): string => decode(this.until(Uint8Array.of(10), limit)).replace(/\r?\n$/, "");
  /** What comes until nothing has come for that time, in seconds. */
  frame = (silence = 0.02, limit = 4096): Uint8Array => this.bytes((port, time) => port.readFrame(silence * 1000, most(limit), time));
  /** Throws away what has arrived. */
  discard(): void {
    asked(() => this.port.discard(), serialProblem);
  }
  /** Lets others have their turn. */
  release(): void {
    this.port.release();
  }
}

/** What an error says; of one that is no `DriverError` also in which function it was. */
function told(error: any): string {
  if (error instanceof DriverError) return error.message;
  if (error?.payload !== undefined) return JSON.stringify(error.payload);
  if (!(error instanceof Error)) return String(error);
  // Lines are those of the bundle, which nobody has written.
  const place = /at ([\w.]+)/.exec(error.stack ?? "")?.[1];
  log.debug(error.stack ?? "");
  return `${place === undefined ? "" : `in ${place}: `}${error.name}: ${error.message}`;
}

const NOT_ASYNC = "the driver is async and must not be: calls that wait are ordinary calls; leave out async and await";

function plain<T>(result: T): T {
  if (typeof (result as any)?.then === "function") throw new DriverError(NOT_ASYNC);
  return result;
}

/** Makes the component's exports of a driver; `sandgate build` calls it. */
export function use(Own: new () => Driver): { deviceDriver: object; migration: object } {
  let driver: Driver | undefined;
  let restored: any;
  const tried = <T>(call: () => T): T => {
    try {
      return plain(call());
    } catch (error) {
      throw told(error);
    }
  };
  const deviceDriver = {
    start(context: any): void {
      tried(() => {
        const own = new Own();
        Object.assign(own, { deviceId: context.deviceId, configuration: JSON.parse(context.configuration), reason: context.reason, restored });
        plain(own.start());
        driver = own;
      });
    },
    onTimer(id: number): void {
      const job = jobs.get(id);
      if (job?.isOnce) jobs.delete(id);
      if (job !== undefined) tried(() => job.run());
    },
    handleCommand(command: any): any[] {
      const handler = driver?.commands[command.name];
      if (handler === undefined) throw { tag: "unsupported", val: `no command ${command.name}` };
      try {
        const result: any = plain(handler(JSON.parse(command.raw)));
        if (result === undefined || result === null) return [];
        const isPlain = typeof result === "object" && !Array.isArray(result);
        return attributes(isPlain ? result : { result });
      } catch (error) {
        throw { tag: error instanceof DriverError ? error.kind : "failed", val: told(error) };
      }
    },
    configure(configuration: string): void {
      const before = driver!.configuration;
      try {
        tried(() => {
          driver!.configuration = JSON.parse(configuration);
          return driver!.configure();
        });
      } catch (error) {
        driver!.configuration = before;
        throw error;
      }
    },
    stop(): void {
      try {
        driver?.stop();
      } catch (error) {
        log.error(`stop: ${told(error)}`);
      }
    },
  };
  const migration = {
    snapshot(): Uint8Array {
      try {
        const packed = driver?.snapshot();
        return packed === undefined ? new Uint8Array() : encode(JSON.stringify(packed));
      } catch (error) {
        log.error(`snapshot: ${told(error)}`);
        return new Uint8Array();
      }
    },
    restore(state: ArrayLike<number>): void {
      restored = tried(() => JSON.parse(decode(state)));
    },
  };
  return { deviceDriver, migration };
}
