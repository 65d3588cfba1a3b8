"""A driver that invents a temperature. Replace it by your device."""

from sandgate import Driver, cancel, command, command_log, every, publish, send


class Thermometer(Driver):
    def start(self):
        self.temperature = 20.0 if self.restored is None else self.restored["temperature"]
        self.timer = every(self.configuration["main"]["interval_s"], self.poll)
        every(300, self.describe)
        self.describe()

    def poll(self):
        self.temperature += 0.1
        send(temperature=self.temperature)

    def describe(self):
        publish(model="invented")

    @command
    def identify(self, name):
        command_log("thinking of a greeting")
        return {"greeting": f"hello {name}"}

    def configure(self):
        cancel(self.timer)
        self.timer = every(self.configuration["main"]["interval_s"], self.poll)

    def snapshot(self):
        return {"temperature": self.temperature}
