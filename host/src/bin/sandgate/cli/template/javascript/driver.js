// A driver that invents a temperature. Replace it by your device.

import { cancel, commandLog, Driver, every, publish, send } from "./sandgate";

export default class Thermometer extends Driver {
  start() {
    this.temperature = this.restored?.temperature ?? 20;
    this.timer = every(this.configuration.main.interval_s, () => this.poll());
    every(300, () => this.describe());
    this.describe();
  }

  poll() {
    this.temperature += 0.1;
    send({ temperature: this.temperature });
  }

  describe() {
    publish({ model: "invented" });
  }

  commands = {
    identify: ({ name }) => {
      commandLog("thinking of a greeting");
      return { greeting: `hello ${name}` };
    },
  };

  configure() {
    cancel(this.timer);
    this.timer = every(this.configuration.main.interval_s, () => this.poll());
  }

  snapshot() {
    return { temperature: this.temperature };
  }
}
