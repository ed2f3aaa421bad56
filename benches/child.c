/* child FILE NAME: appends CLOCK_MONOTONIC in nanoseconds and its pid to FILE in its first instructions, then waits.
 * Small and static, so that what is measured is who starts it. */
#include <fcntl.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t record[2] = {now.tv_sec * 1000000000LL + now.tv_nsec, getpid()};
    if (argc < 2)
        return 2;
    int fd = open(argv[1], O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (fd < 0 || write(fd, record, sizeof record) != sizeof record)
        return 3;
    close(fd);
    for (;;)
        pause();
}
