"""The wire: stubs generated from proto/ and the codec between them and arrays."""
