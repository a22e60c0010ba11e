/* The wall clock of one host's programs: the system's, plus an offset that the harness may change at any moment.

   Preloaded (LD_PRELOAD) where UPDRAFT_TEST_CLOCK names a file of eight bytes, the offset in nanoseconds.
   Only the wall clock is moved; the monotonic one stays, as in a real jump. Absolute deadlines on the
   wall clock are moved back, so that they are waited for as if the clock had jumped before the call.

   No header and no library is needed to build it: any C compiler will do. */

struct timespec { long tv_sec; long tv_nsec; };
struct timeval { long tv_sec; long tv_usec; };

extern long syscall(long, ...);
extern char *getenv(const char *);
extern int open(const char *, int, ...);
extern int close(int);
extern void *mmap(void *, unsigned long, int, int, int, long);
extern int sem_clockwait(void *, int, const struct timespec *);
extern int pthread_mutex_clocklock(void *, int, const struct timespec *);

#if defined(__x86_64__)
#define CLOCK_GETTIME 228
#define CLOCK_NANOSLEEP 230
#elif defined(__aarch64__)
#define CLOCK_GETTIME 113
#define CLOCK_NANOSLEEP 115
#else
#error "the numbers of two system calls are not known here"
#endif

static long zero;
static volatile long *offset;

/* Mapped on first use; threads that do it at once map it twice, which does no harm. */
static long offset_ns(void)
{
    if (!offset) {
        const char *path = getenv("UPDRAFT_TEST_CLOCK");
        int fd = path ? open(path, 02000000 /* O_CLOEXEC */) : -1;
        void *mapped = fd < 0 ? (void *)-1 : mmap(0, 8, 1 /* PROT_READ */, 1 /* MAP_SHARED */, fd, 0);
        if (fd >= 0)
            close(fd);
        offset = mapped == (void *)-1 ? &zero : mapped;
    }
    return *offset;
}

/* CLOCK_REALTIME, CLOCK_REALTIME_COARSE, CLOCK_REALTIME_ALARM, CLOCK_TAI */
static int is_wall(int clock) { return clock == 0 || clock == 5 || clock == 8 || clock == 11; }

static struct timespec moved(const struct timespec *from, long by_ns)
{
    struct timespec to = {from->tv_sec + by_ns / 1000000000, from->tv_nsec + by_ns % 1000000000};
    if (to.tv_nsec < 0) {
        to.tv_nsec += 1000000000;
        to.tv_sec -= 1;
    } else if (to.tv_nsec >= 1000000000) {
        to.tv_nsec -= 1000000000;
        to.tv_sec += 1;
    }
    return to;
}

int clock_gettime(int clock, struct timespec *at)
{
    int result = (int)syscall(CLOCK_GETTIME, clock, at);
    if (result == 0 && is_wall(clock))
        *at = moved(at, offset_ns());
    return result;
}

int gettimeofday(struct timeval *at, void *zone)
{
    struct timespec now;
    clock_gettime(0, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

long time(long *at)
{
    struct timespec now;
    clock_gettime(0, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *at, int base)
{
    return base == 1 && clock_gettime(0, at) == 0 ? base : 0;
}

int clock_nanosleep(int clock, int flags, const struct timespec *until, struct timespec *left)
{
    struct timespec real = *until;
    if ((flags & 1) && is_wall(clock))
        real = moved(until, -offset_ns());
    /* The error is the result here; syscall() has it in errno. */
    extern int *__errno_location(void);
    int kept = *__errno_location();
    int result = syscall(CLOCK_NANOSLEEP, clock, flags, &real, left) ? *__errno_location() : 0;
    *__errno_location() = kept;
    return result;
}

int sem_timedwait(void *semaphore, const struct timespec *until)
{
    struct timespec real = moved(until, -offset_ns());
    return sem_clockwait(semaphore, 0, &real);
}

int pthread_mutex_timedlock(void *mutex, const struct timespec *until)
{
    struct timespec real = moved(until, -offset_ns());
    return pthread_mutex_clocklock(mutex, 0, &real);
}
