//! Driver for Schneider Electric PM2100 power meters.
