"""What every command shares: flags, settings, streams, signals, sockets and loading; and the folder commands."""
