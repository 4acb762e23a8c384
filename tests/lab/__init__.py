"""Makes real Linux crash dumps with QEMU and fetches the tools that dumpstream is compared with."""
