//! Sandgate driver for relays and plugs that run Tasmota.
