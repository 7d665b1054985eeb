"""The packaged jobs, each a TOML file."""
