/* What a program needs that has no libc: a place to begin, a way to end, and the four functions that
   compilers call by themselves. */

typedef unsigned long size;

int proof(void);

void *memcpy(void *to, const void *from, size n) {
    for (size i = 0; i < n; i++) ((volatile char *)to)[i] = ((const char *)from)[i];
    return to;
}

void *memmove(void *to, const void *from, size n) {
    if ((size)to <= (size)from) return memcpy(to, from, n);
    while (n--) ((volatile char *)to)[n] = ((const char *)from)[n];
    return to;
}

void *memset(void *to, int byte, size n) {
    for (size i = 0; i < n; i++) ((volatile char *)to)[i] = (char)byte;
    return to;
}

int memcmp(const void *a, const void *b, size n) {
    for (size i = 0; i < n; i++) {
        int difference = ((const unsigned char *)a)[i] - ((const unsigned char *)b)[i];
        if (difference) return difference;
    }
    return 0;
}

int bcmp(const void *a, const void *b, size n) { return memcmp(a, b, n); }

size strlen(const char *text) {
    size n = 0;
    while (((const volatile char *)text)[n]) n++;
    return n;
}

static _Noreturn void leave(long code) {
#if defined(__x86_64__)
    __asm__ volatile("syscall" : : "a"(60), "D"(code));
#elif defined(__aarch64__)
    register long number __asm__("x8") = 93, argument __asm__("x0") = code;
    __asm__ volatile("svc 0" : : "r"(number), "r"(argument));
#else
#error "say here how a process ends on this machine"
#endif
    for (;;) {}
}

#if defined(__x86_64__)
__attribute__((force_align_arg_pointer))
#endif
_Noreturn void _start(void) { leave(proof()); }
