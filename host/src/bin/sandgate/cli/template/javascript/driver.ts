// A driver that invents a temperature. Replace it by your device.

import { cancel, commandLog, Driver, every, publish, send } from "./sandgate";

export default class Thermometer extends Driver {
  private temperature = 20;
  private timer = 0;

  start(): void {
    this.temperature = this.restored?.temperature ?? 20;
    this.timer = every(this.configuration.main.interval_s, () => this.poll());
    every(300, () => this.describe());
    this.describe();
  }

  private poll(): void {
    this.temperature += 0.1;
    send({ temperature: this.temperature });
  }

  private describe(): void {
    publish({ model: "invented" });
  }

  commands = {
    identify: ({ name }: { name: string }) => {
      commandLog("thinking of a greeting");
      return { greeting: `hello ${name}` };
    },
  };

  configure(): void {
    cancel(this.timer);
    this.timer = every(this.configuration.main.interval_s, () => this.poll());
  }

  snapshot(): { temperature: number } {
    return { temperature: this.temperature };
  }
}
