/* The least that a relay in user space can do: one thread, epoll, recv, send. No toxics, no API.
 * What it adds on a machine is the machine's own share of what any proxy adds there.
 *
 *   cc -O2 -o relay relay.c && ./relay UPSTREAM_PORT      prints its own port, ends with its stdin
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define DESCRIPTORS 4096

static int peer_of[DESCRIPTORS];
static char chunk[32 * 1024];

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void watch(int loop, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event);
}

static void join(int loop, int client, int upstream_port) {
    struct sockaddr_in to = loopback(upstream_port);
    int server = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (connect(server, (struct sockaddr *)&to, sizeof to) < 0 || server >= DESCRIPTORS) exit(1);
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    peer_of[client] = server, peer_of[server] = client;
    watch(loop, client), watch(loop, server);
}

/* Sends block: a floor needs no bookkeeping of what a slow reader has left over. */
static void pass(int from) {
    int to = peer_of[from];
    ssize_t got = recv(from, chunk, sizeof chunk, MSG_DONTWAIT);
    for (ssize_t sent = 0, n; sent < got; sent += n)
        if ((n = send(to, chunk + sent, got - sent, MSG_NOSIGNAL)) < 0) { got = 0; break; }
    if (got == 0) close(from), close(to);
}

int main(int argc, char **argv) {
    struct sockaddr_in here = loopback(0);
    socklen_t size = sizeof here;
    int listener = socket(AF_INET, SOCK_STREAM, 0), loop = epoll_create1(0);
    if (argc < 2 || bind(listener, (struct sockaddr *)&here, size) || listen(listener, 1024))
        return 1;
    getsockname(listener, (struct sockaddr *)&here, &size);
    printf("%d\n", ntohs(here.sin_port)), fflush(stdout);
    watch(loop, listener), watch(loop, STDIN_FILENO);
    for (;;) {
        struct epoll_event ready[64];
        int n = epoll_wait(loop, ready, 64, -1);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.fd == STDIN_FILENO) return 0;
            if (ready[i].data.fd == listener) join(loop, accept(listener, 0, 0), atoi(argv[1]));
            else pass(ready[i].data.fd);
        }
    }
}
