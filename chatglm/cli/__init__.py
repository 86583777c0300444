"""What every command shares: flags, settings, signals, loading with progress."""
