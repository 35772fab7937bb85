"""The command line: one file a command, each thin: parse, call, print. Nothing heavy is imported until a command runs."""
