"""Settings of glibc under which a process on CPUs keeps the pages that it freed."""

# torch gives each large tensor back to the system, and on CPUs half of a step of `sft`, and a tenth of one of tries, went into
# clearing pages. With these glibc keeps what it has: for `sft` half as much memory again (it makes logits of every token),
# for tries the same (bench/RESULTS.md).
KEEP_PAGES = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
