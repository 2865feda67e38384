"""The rules of merging, as pure functions: which snapshot is newest, who owns a socket, who opened a connection."""
