"""Event streams as state: each namespace's open sockets, what just closed, whether events can be trusted."""
