//! Sandgate driver for Deye and Sunsynk three-phase hybrid inverters.
