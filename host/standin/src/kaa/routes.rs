//! Which connection speaks for which endpoint: the last one that sent something with its token.

use std::collections::HashMap;

/// Names a connection as long as the stand-in lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// The way to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Its connection.
    pub connection: ConnectionId,
    /// The QoS of its last message; pushes have the same.
    pub qos: u8,
}

/// The ways to all connected endpoints, by token.
#[derive(Debug, Default)]
pub struct Routes(HashMap<String, Route>);

impl Routes {
    /// Notes who speaks for an endpoint; true if it was somebody else or nobody before.
    pub fn attach(&mut self, token: &str, connection: ConnectionId, qos: u8) -> bool {
        let route = Route { connection, qos };
        self.0.insert(token.to_owned(), route).is_none_or(|old| old.connection != connection)
    }

    /// Forgets the way to an endpoint; false if there was none.
    pub fn detach(&mut self, token: &str) -> bool {
        self.0.remove(token).is_some()
    }

    /// Forgets all endpoints of a connection and returns them.
    pub fn close(&mut self, connection: ConnectionId) -> Vec<String> {
        let closed = self.0.extract_if(|_, route| route.connection == connection);
        let mut tokens: Vec<String> = closed.map(|(token, _)| token).collect();
        tokens.sort();
        tokens
    }

    /// The way to an endpoint.
    pub fn find(&self, token: &str) -> Option<Route> {
        self.0.get(token).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_connection_that_spoke_for_an_endpoint_gets_its_traffic() {
        let (one, two) = (ConnectionId(1), ConnectionId(2));
        let mut routes = Routes::default();
        assert!(routes.attach("T", one, 0));
        assert!(!routes.attach("T", one, 1));
        assert!(routes.attach("U", one, 1));
        assert!(routes.attach("T", two, 0));
        assert_eq!(routes.find("T").unwrap().connection, two);
        assert_eq!(routes.close(one), ["U"]);
        assert_eq!(routes.find("U"), None);
        assert!(routes.detach("T"));
        assert!(!routes.detach("T"));
    }
}
