"""The messages of the contract, generated from proto/asng/v1 when the package is built."""
