//! The gateway on the Kaa API: real drivers in the real program, against the
//! stand-in with and without its faults.

mod connection;
mod delivery;
mod endpoints;
mod faults;
mod offers;
mod races;
mod requests;
mod site;
