/* The ordinary request, without the interpreter.
 *
 * A load worker of scenarios that ask for answers in one piece spends most of its time on requests
 * of which nothing unusual can be said: an open connection, a send that the kernel takes whole, one
 * read that holds a whole HTTP/1.1 answer of a wanted status. FastLanes serves those, and only
 * those: it takes arrivals in intended order, sends, reads, and keeps the bucket numbers of their
 * five series. Whatever else happens - a connection to be made, an answer in parts, an odd header,
 * an error, a late one - is handed over, with what was sent and read so far, to the lane's own
 * code in lanes.py, which knows everything. Times are microseconds on the run's clock. What is
 * decided here is what core.py and http1.py decide for the same bytes; the tests hold that.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>
#include <structmember.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_BYTES 65536
#define EVENTS 64
#define SERIES 5               /* latency, lane wait, send lag, attempt, service time */
#define MAX_REPLICAS 64
#define ERROR_PEEK 4096        /* bytes of a JSON answer that are searched for "error" */
#define HIGHEST_US 3600000000LL
#define PREEMPTED_NS 20000     /* a turn of the spin that took longer was no idling of ours */
#define FREE_SINCE_EVER (INT64_MIN / 2)

enum { COLD = -1 };            /* a lane without a connection that may be used here */
enum { NOBODY = 0, EXPIRED = -1 }; /* instead of a replica's number */

typedef struct {
    int64_t number, intended, kind, row, slice, free;
} Job;

typedef struct {
    int fd;                    /* COLD, or a connected socket in our epoll */
    int busy;                  /* job was sent, nothing of its answer has come */
    int64_t sent;
    Job job;
} Lane;

typedef struct {
    int64_t since;
    int lane;
} Parked;

typedef struct {
    int ordinary;              /* may be served here at all */
    int64_t patience;          /* from the intended start, until an answer must have come */
    uint8_t wanted[125];       /* bit set of the status codes 0..999 */
    PyObject *check;           /* None, or bytes of the body -> whether it is fine */
    PyObject *payloads;        /* list of bytes, a row each */
} Kind;

typedef struct {
    int64_t slice;
    int kind, crossed, who;
    uint16_t *rows;            /* SERIES bucket numbers a request; NULL if who is EXPIRED */
    size_t count, room;
} Group;

typedef struct {
    PyObject_HEAD
    int epoll;
    int64_t origin_ns;
    /* lanes */
    Lane *lanes;
    Parked *parked;
    int size, made, free_count, busy;
    /* the part of the schedule at hand */
    Py_buffer intended, kinds, rows, slices, numbers;
    int has_numbers;
    int64_t first;
    Py_ssize_t at, count;
    int64_t lease;
    /* rules */
    Kind *kind;
    int kind_count;
    int64_t *marks;
    int mark_count;
    char replica_header[64];
    size_t replica_header_length;
    char *replicas[MAX_REPLICAS];
    size_t replica_length[MAX_REPLICAS];
    int replica_count;
    /* what was seen */
    Group *groups;
    size_t group_count, group_room, last_group;
    int64_t waited, idle_ns;
    char buffer[READ_BYTES];
} FastLanes;

/* ------------------------------------------------------------------------------------ time */

static int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t now_us(const FastLanes *self) {
    int64_t ns = monotonic_ns() - self->origin_ns;
    return ns >= 0 ? ns / 1000 : -((999 - ns) / 1000);
}

/* ------------------------------------------------------------------------------ the schedule */

static int64_t cell(const Py_buffer *column, Py_ssize_t at) {
    return ((const int64_t *)column->buf)[at];
}

static void let_go(FastLanes *self) {
    PyBuffer_Release(&self->intended);
    PyBuffer_Release(&self->kinds);
    PyBuffer_Release(&self->rows);
    PyBuffer_Release(&self->slices);
    if (self->has_numbers)
        PyBuffer_Release(&self->numbers);
    self->has_numbers = 0;
    self->at = self->count = 0;
}

static int has_free(const FastLanes *self) {
    return self->free_count || self->made < self->size;
}

/* Whether the next arrival is due and a lane is free for it. */
static int is_due(const FastLanes *self, int64_t now) {
    return self->at < self->count && has_free(self) && now <= self->lease && cell(&self->intended, self->at) <= now;
}

static int64_t free_since(const FastLanes *self) {
    return self->made < self->size ? FREE_SINCE_EVER : self->parked[0].since;
}

/* The next arrival; free_count or made are the caller's to change. */
static Job take(FastLanes *self) {
    Py_ssize_t at = self->at++;
    Job job = {
        self->has_numbers ? cell(&self->numbers, at) : self->first + at,
        cell(&self->intended, at), cell(&self->kinds, at), cell(&self->rows, at),
        cell(&self->slices, at), free_since(self),
    };
    if (job.free > job.intended)
        self->waited++;
    return job;
}

/* ------------------------------------------------------------------------------------- rows */

static uint16_t bucket(int64_t value) {
    uint64_t clamped = value < 1 ? 1 : value > HIGHEST_US ? HIGHEST_US : value;
    int shift = 64 - __builtin_clzll(clamped | 2047) - 11;
    return (uint16_t)((shift << 10) + (clamped >> shift));
}

static int crossed(const FastLanes *self, int64_t intended, int64_t end) {
    int low = 0, high = self->mark_count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (self->marks[middle] <= intended)
            low = middle + 1;
        else
            high = middle;
    }
    return low < self->mark_count && self->marks[low] <= end ? low : -1;
}

static Group *group_of(FastLanes *self, int64_t slice, int kind, int mark, int who) {
    for (size_t tried = 0; tried <= self->group_count; tried++) {
        size_t index = tried ? tried - 1 : self->last_group;
        if (index >= self->group_count)
            continue;
        Group *group = &self->groups[index];
        if (group->slice == slice && group->kind == kind && group->crossed == mark &&
            group->who == who) {
            self->last_group = index;
            return group;
        }
    }
    if (self->group_count == self->group_room) {
        size_t room = self->group_room ? 2 * self->group_room : 16;
        Group *more = PyMem_Realloc(self->groups, room * sizeof(Group));
        if (more == NULL)
            return NULL;
        self->groups = more;
        self->group_room = room;
    }
    Group *made = &self->groups[self->group_count];
    *made = (Group){slice, kind, mark, who, NULL, 0, 0};
    self->last_group = self->group_count++;
    return made;
}

/* An ordinary request has ended well. */
static int file(FastLanes *self, const Lane *lane, int64_t end, int who) {
    const Job *job = &lane->job;
    int64_t due = job->intended > job->free ? job->intended : job->free;
    Group *group = group_of(self, job->slice, (int)job->kind,
                            crossed(self, job->intended, end), who);
    if (group != NULL && group->count == group->room) {
        size_t room = group->room ? 2 * group->room : 512;
        uint16_t *more = PyMem_Realloc(group->rows, room * SERIES * sizeof(uint16_t));
        if (more == NULL)
            group = NULL;
        else {
            group->rows = more;
            group->room = room;
        }
    }
    if (group == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    uint16_t *row = group->rows + SERIES * group->count++;
    row[0] = bucket(end - job->intended);
    row[1] = bucket(due - job->intended);
    row[2] = bucket(lane->sent - due);
    row[3] = row[4] = bucket(end - lane->sent);
    return 0;
}

/* Pass over arrivals at the head of the queue that have waited for longer than their users would.
 * Far above what the target can take, nearly every arrival ends here. */
static int expire(FastLanes *self, int64_t now) {
    for (; self->at < self->count; self->at++) {
        int64_t intended = cell(&self->intended, self->at), kind = cell(&self->kinds, self->at);
        int64_t deadline = intended + self->kind[kind].patience;
        if (now <= deadline)
            return 0;
        Group *group = group_of(self, cell(&self->slices, self->at), (int)kind,
                                crossed(self, intended, deadline), EXPIRED);
        if (group == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        group->count++;
    }
    return 0;
}

/* Whether the next arrival is due, none before it having expired. -1 = an exception. */
static int due_in_time(FastLanes *self, int64_t now) {
    if (!is_due(self, now))
        return 0;
    return expire(self, now) < 0 ? -1 : is_due(self, now);
}

/* ---------------------------------------------------------------------------------- answers */

typedef struct {
    int status, json, who;     /* who: a replica's number or NOBODY */
    const char *body;
    size_t length;
} Answer;

static int named(const char *name, size_t length, const char *wanted) {
    return length == strlen(wanted) && strncasecmp(name, wanted, length) == 0;
}

/* RFC 9110: what the name of a header is made of. */
static int is_token(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

static int replica_of(const FastLanes *self, const char *value, size_t length) {
    for (int index = 0; index < self->replica_count; index++)
        if (self->replica_length[index] == length &&
            memcmp(self->replicas[index], value, length) == 0)
            return index + 1;
    return -1;
}

/* One header line; 0 if only the lane's own code can say what it means. */
static int header(const FastLanes *self, const char *line, const char *end, Answer *answer,
                  int64_t *length) {
    const char *colon = memchr(line, ':', end - line);
    if (colon == NULL || colon == line)
        return 0;
    for (const char *at = line; at < colon; at++)
        if (!is_token(*at))
            return 0;
    size_t name = colon - line;
    const char *value = colon + 1;
    while (value < end && (*value == ' ' || *value == '\t'))
        value++;
    while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    for (const char *at = value; at < end; at++)
        if ((unsigned char)*at < ' ' || *at == 127)
            return 0;
    size_t size = end - value;
    if (named(line, name, "content-length")) {
        if (*length >= 0 || size == 0 || size > 9)
            return 0;
        *length = 0;
        for (; value < end; value++) {
            if (*value < '0' || *value > '9')
                return 0;
            *length = 10 * *length + (*value - '0');
        }
        return 1;
    }
    if (named(line, name, "content-type")) {
        if (answer->json >= 0)
            return 0;
        answer->json = size >= 16 && memcmp(value, "application/json", 16) == 0;
        return 1;
    }
    if (named(line, name, "connection"))
        return size == 10 && strncasecmp(value, "keep-alive", 10) == 0;
    if (name == self->replica_header_length &&
        strncasecmp(line, self->replica_header, name) == 0) {
        if (answer->who)
            return 0;
        answer->who = replica_of(self, value, size);
        return answer->who > 0;
    }
    return !named(line, name, "content-encoding") && !named(line, name, "transfer-encoding") &&
           !named(line, name, "upgrade");
}

/* Whether the bytes are one whole answer that says nothing unusual. */
static int read_answer(const FastLanes *self, const char *data, size_t size, Answer *answer) {
    if (size < 19 || memcmp(data, "HTTP/1.1 ", 9) != 0)
        return 0;
    const char *head_end = memmem(data, size, "\r\n\r\n", 4);
    if (head_end == NULL)
        return 0;
    int status = 0;
    for (int digit = 9; digit < 12; digit++) {
        if (data[digit] < '0' || data[digit] > '9')
            return 0;
        status = 10 * status + (data[digit] - '0');
    }
    if (status < 200 || status == 204 || status == 304 || (data[12] != ' ' && data[12] != '\r'))
        return 0;
    const char *line = memchr(data, '\n', head_end + 2 - data) + 1;
    for (const char *at = data + 12; at < line - 2; at++)
        if ((unsigned char)*at < ' ' || *at == 127)
            return 0;
    if (line[-2] != '\r')
        return 0;
    *answer = (Answer){status, -1, NOBODY, head_end + 4, 0};
    int64_t length = -1;
    while (line < head_end + 2) {
        const char *next = memchr(line, '\n', head_end + 2 - line);
        if (next == NULL || next[-1] != '\r' || !header(self, line, next - 1, answer, &length))
            return 0;
        line = next + 1;
    }
    answer->length = data + size - answer->body;
    return length == (int64_t)answer->length;
}

/* 1 = the answer is fine, 0 = the lane's own code must say why not, -1 = an exception. */
static int is_fine(const Kind *kind, const Answer *answer) {
    if (answer->status > 999 || !(kind->wanted[answer->status / 8] >> answer->status % 8 & 1))
        return 0;
    int looked_into = kind->check != Py_None;
    if ((looked_into || (answer->json == 1 && answer->length <= ERROR_PEEK)) &&
        memmem(answer->body, answer->length, "\"error\"", 7) != NULL)
        return 0;
    if (!looked_into)
        return 1;
    PyObject *body = PyBytes_FromStringAndSize(answer->body, answer->length);
    if (body == NULL)
        return -1;
    PyObject *said = PyObject_CallOneArg(kind->check, body);
    Py_DECREF(body);
    if (said == NULL)
        return -1;
    int fine = PyObject_IsTrue(said);
    Py_DECREF(said);
    return fine;
}

/* ------------------------------------------------------------------------------- handing over */

static void forget_connection(FastLanes *self, Lane *lane) {
    if (lane->fd != COLD)
        epoll_ctl(self->epoll, EPOLL_CTL_DEL, lane->fd, NULL);
    lane->fd = COLD;
}

static PyObject *job_tuple(const Job *job) {
    return Py_BuildValue("(LLLLLL)", job->number, job->intended, job->kind, job->row, job->slice,
                         job->free);
}

/* (lane, job, sent, at, done, data, errno) for lanes.py; see Handed there.
 * lane -1: one that was never made. No job: something came on an idle connection.
 * done: bytes sent; -1 = none, and without an errno the request was not even begun. */
static int hand_over(PyObject *handed, int lane, const Job *job, int64_t sent, int64_t at,
                     Py_ssize_t done, const char *data, Py_ssize_t size, int error) {
    PyObject *bytes = data == NULL ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize(data, size);
    PyObject *work = job == NULL ? Py_NewRef(Py_None) : job_tuple(job);
    PyObject *one = bytes == NULL || work == NULL
                        ? NULL
                        : Py_BuildValue("(iOLLnOi)", lane, work, sent, at, done, bytes, error);
    Py_XDECREF(bytes);
    Py_XDECREF(work);
    if (one == NULL)
        return -1;
    int failed = PyList_Append(handed, one);
    Py_DECREF(one);
    return failed;
}

static PyObject *payload_of(const Kind *kind, const Job *job) {
    return PyList_GET_ITEM(kind->payloads, job->row % PyList_GET_SIZE(kind->payloads));
}

static void end_of_job(FastLanes *self, Lane *lane) {
    lane->busy = 0;
    self->busy--;
}

/* A lane that has taken a job: send it, or hand it over before anything was done. */
static int begin(FastLanes *self, int index, Job job, PyObject *handed) {
    Lane *lane = index < 0 ? NULL : &self->lanes[index];
    const Kind *kind = &self->kind[job.kind];
    int64_t now = now_us(self);
    if (lane == NULL || lane->fd == COLD || !kind->ordinary) {
        if (lane != NULL)
            forget_connection(self, lane);
        return hand_over(handed, index, &job, now, now, -1, NULL, 0, 0);
    }
    PyObject *payload = payload_of(kind, &job);
    Py_ssize_t size = PyBytes_GET_SIZE(payload);
    ssize_t done = send(lane->fd, PyBytes_AS_STRING(payload), size, MSG_NOSIGNAL);
    if (done == size) {
        lane->busy = 1;
        lane->sent = now;
        lane->job = job;
        self->busy++;
        return 0;
    }
    int error = done < 0 ? errno : 0;
    if (error == EAGAIN || error == EINTR)
        done = error = 0;
    forget_connection(self, lane);
    return hand_over(handed, index, &job, now, now, done, NULL, 0, error);
}

/* A free lane, the one freed last; -1 = one that was never made. */
static int pop(FastLanes *self) {
    if (self->free_count)
        return self->parked[--self->free_count].lane;
    self->made++;
    return -1;
}

static int readable(FastLanes *self, int index, PyObject *handed) {
    Lane *lane = &self->lanes[index];
    if (lane->fd == COLD)
        return 0; /* left within this very batch of events */
    if (!lane->busy) {
        forget_connection(self, lane);
        int64_t now = now_us(self);
        return hand_over(handed, index, NULL, 0, now, 0, NULL, 0, 0);
    }
    ssize_t size = recv(lane->fd, self->buffer, READ_BYTES, 0);
    int error = size < 0 ? errno : 0;
    if (error == EAGAIN || error == EINTR)
        return 0;
    int64_t now = now_us(self);
    const Kind *kind = &self->kind[lane->job.kind];
    Answer answer;
    int fine = 0;
    if (size > 0 && now <= lane->job.intended + kind->patience &&
        read_answer(self, self->buffer, size, &answer)) {
        fine = is_fine(kind, &answer);
        if (fine < 0)
            return -1;
    }
    if (!fine) {
        PyObject *payload = payload_of(kind, &lane->job);
        end_of_job(self, lane);
        forget_connection(self, lane);
        return hand_over(handed, index, &lane->job, lane->sent, now, PyBytes_GET_SIZE(payload),
                         error ? NULL : self->buffer, size, error);
    }
    if (file(self, lane, now, answer.who) < 0)
        return -1;
    end_of_job(self, lane);
    self->parked[self->free_count++] = (Parked){now, index};
    return 0;
}

/* ---------------------------------------------------------------------------------- methods */

/* Take the next arrival, if it is due, and begin with it. 1 = there was one, -1 = an exception. */
static int serve_next(FastLanes *self, int64_t now, PyObject *handed) {
    int found = due_in_time(self, now);
    if (found <= 0)
        return found;
    Job job = take(self);
    return begin(self, pop(self), job, handed) < 0 ? -1 : 1;
}

static PyObject *turn(FastLanes *self, PyObject *args) {
    long long budget, spin;
    if (!PyArg_ParseTuple(args, "LL", &budget, &spin))
        return NULL;
    PyObject *handed = PyList_New(0);
    if (handed == NULL)
        return NULL;
    struct epoll_event events[EVENTS];
    int64_t began = now_us(self), idle_since = -1;
    for (;;) {
        int64_t now = now_us(self);
        for (int served; (served = serve_next(self, now, handed)); now = now_us(self)) {
            if (served < 0)
                goto failed;
            idle_since = -1;
            if (PyList_GET_SIZE(handed) >= EVENTS)
                return handed;
        }
        int count = epoll_wait(self->epoll, events, EVENTS, 0);
        for (int event = 0; event < count; event++) {
            if (readable(self, (int)events[event].data.u32, handed) < 0 ||
                serve_next(self, now_us(self), handed) < 0)
                goto failed;
        }
        if (count > 0)
            now = now_us(self);
        if (PyList_GET_SIZE(handed) || now - began >= budget)
            return handed;
        if (count > 0) {
            idle_since = -1;
            continue;
        }
        if (!has_free(self) || self->at >= self->count || now > self->lease ||
            cell(&self->intended, self->at) - now > spin)
            return handed;
        int64_t ns = monotonic_ns();
        if (idle_since >= 0 && ns - idle_since < PREEMPTED_NS)
            self->idle_ns += ns - idle_since;
        idle_since = ns;
    }
failed:
    Py_DECREF(handed);
    return NULL;
}

static PyObject *park(FastLanes *self, PyObject *args) {
    int index, fd;
    long long now;
    if (!PyArg_ParseTuple(args, "iiL", &index, &fd, &now))
        return NULL;
    if (index < 0 || index >= self->size || self->free_count >= self->size ||
        self->lanes[index].busy || self->lanes[index].fd != COLD) {
        PyErr_SetString(PyExc_ValueError, "such a lane cannot be parked");
        return NULL;
    }
    if (fd >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)index};
        if (epoll_ctl(self->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
            return PyErr_SetFromErrno(PyExc_OSError);
        self->lanes[index].fd = fd;
    }
    self->parked[self->free_count++] = (Parked){now, index};
    Py_RETURN_NONE;
}

/* An overdue arrival for a lane that becomes free this very moment, in its own code's hands. */
static PyObject *take_now(FastLanes *self, PyObject *moment) {
    long long now = PyLong_AsLongLong(moment);
    if (now == -1 && PyErr_Occurred())
        return NULL;
    if (self->free_count >= self->size) {
        PyErr_SetString(PyExc_ValueError, "all lanes are free already");
        return NULL;
    }
    self->parked[self->free_count++] = (Parked){now, -1};
    PyObject *found = NULL;
    int there = due_in_time(self, now);
    if (there > 0) {
        Job job = take(self);
        found = job_tuple(&job);
    } else if (there == 0)
        found = Py_NewRef(Py_None);
    self->free_count--;
    return found;
}

/* Hand over the busy lanes whose users have waited too long, or all of them. */
static PyObject *hand_back(FastLanes *self, int64_t now, int all) {
    PyObject *handed = PyList_New(0);
    for (int index = 0; handed != NULL && index < self->size; index++) {
        Lane *lane = &self->lanes[index];
        if (!lane->busy)
            continue;
        const Kind *kind = &self->kind[lane->job.kind];
        if (!all && now < lane->job.intended + kind->patience)
            continue;
        PyObject *payload = payload_of(kind, &lane->job);
        end_of_job(self, lane);
        forget_connection(self, lane);
        if (hand_over(handed, index, &lane->job, lane->sent, now, PyBytes_GET_SIZE(payload), NULL,
                      0, 0) < 0)
            Py_CLEAR(handed);
    }
    return handed;
}

static PyObject *late(FastLanes *self, PyObject *now) {
    long long at = PyLong_AsLongLong(now);
    return at == -1 && PyErr_Occurred() ? NULL : hand_back(self, at, 0);
}

static PyObject *all_busy(FastLanes *self, PyObject *Py_UNUSED(none)) {
    return hand_back(self, now_us(self), 1);
}

static int column(PyObject *array, Py_buffer *into, Py_ssize_t *count) {
    if (PyObject_GetBuffer(array, into, PyBUF_SIMPLE) < 0)
        return -1;
    *count = into->len / (Py_ssize_t)sizeof(int64_t);
    return 0;
}

static PyObject *load(FastLanes *self, PyObject *args) {
    PyObject *arrays[5];
    long long first;
    if (!PyArg_ParseTuple(args, "LOOOOO", &first, &arrays[0], &arrays[1], &arrays[2], &arrays[3],
                          &arrays[4]))
        return NULL;
    let_go(self);
    Py_ssize_t counts[5];
    if (column(arrays[0], &self->intended, &counts[0]) < 0 ||
        column(arrays[1], &self->kinds, &counts[1]) < 0 ||
        column(arrays[2], &self->rows, &counts[2]) < 0 ||
        column(arrays[3], &self->slices, &counts[3]) < 0)
        return NULL;
    counts[4] = counts[0];
    if (arrays[4] != Py_None) {
        if (column(arrays[4], &self->numbers, &counts[4]) < 0)
            return NULL;
        self->has_numbers = 1;
    }
    for (int other = 1; other < 5; other++)
        if (counts[other] != counts[0]) {
            let_go(self);
            PyErr_SetString(PyExc_ValueError, "columns of different lengths");
            return NULL;
        }
    for (Py_ssize_t at = 0; at < counts[0]; at++)
        if (cell(&self->kinds, at) < 0 || cell(&self->kinds, at) >= self->kind_count ||
            cell(&self->rows, at) < 0) {
            let_go(self);
            PyErr_SetString(PyExc_ValueError, "an arrival of a kind that is not there");
            return NULL;
        }
    self->first = first;
    self->count = counts[0];
    Py_RETURN_NONE;
}

static PyObject *seek(FastLanes *self, PyObject *position) {
    Py_ssize_t at = PyLong_AsSsize_t(position);
    if (at == -1 && PyErr_Occurred())
        return NULL;
    if (at < 0 || at > self->count) {
        PyErr_SetString(PyExc_ValueError, "beyond the part of the schedule at hand");
        return NULL;
    }
    self->at = at;
    Py_RETURN_NONE;
}

static PyObject *know(FastLanes *self, PyObject *name) {
    char *text;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(name, &text, &size) < 0)
        return NULL;
    if (self->replica_count == MAX_REPLICAS || replica_of(self, text, size) > 0)
        Py_RETURN_FALSE;
    char *copy = PyMem_Malloc(size + 1);
    if (copy == NULL)
        return PyErr_NoMemory();
    memcpy(copy, text, size);
    self->replicas[self->replica_count] = copy;
    self->replica_length[self->replica_count++] = size;
    Py_RETURN_TRUE;
}

static PyObject *cut(FastLanes *self, PyObject *Py_UNUSED(none)) {
    PyObject *all = PyList_New(0);
    for (size_t index = 0; all != NULL && index < self->group_count; index++) {
        Group *group = &self->groups[index];
        PyObject *one = Py_BuildValue(
            "(Liiiny#)", group->slice, group->kind, group->crossed, group->who,
            (Py_ssize_t)group->count, group->rows == NULL ? "" : (const char *)group->rows,
            (Py_ssize_t)(group->rows == NULL ? 0 : group->count * SERIES * sizeof(uint16_t)));
        if (one == NULL || PyList_Append(all, one) < 0)
            Py_CLEAR(all);
        Py_XDECREF(one);
    }
    if (all == NULL)
        return NULL;
    for (size_t index = 0; index < self->group_count; index++)
        PyMem_Free(self->groups[index].rows);
    self->group_count = self->last_group = 0;
    return all;
}

static PyObject *second(FastLanes *self, PyObject *Py_UNUSED(none)) {
    PyObject *found = Py_BuildValue("(LL)", self->waited, self->idle_ns);
    self->waited = self->idle_ns = 0;
    return found;
}

/* ------------------------------------------------------------------------------- life, fields */

static int set_kinds(FastLanes *self, PyObject *kinds) {
    self->kind = PyMem_Calloc(PyList_GET_SIZE(kinds) + 1, sizeof(Kind));
    if (self->kind == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(kinds); index++) {
        Kind *kind = &self->kind[index];
        PyObject *statuses, *check, *payloads;
        long long patience;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(kinds, index), "pLO!OO!", &kind->ordinary, &patience,
                              &PyList_Type, &statuses, &check, &PyList_Type, &payloads))
            return -1;
        kind->patience = patience;
        kind->check = Py_NewRef(check);
        kind->payloads = Py_NewRef(payloads);
        self->kind_count++;
        for (Py_ssize_t at = 0; at < PyList_GET_SIZE(statuses); at++) {
            long status = PyLong_AsLong(PyList_GET_ITEM(statuses, at));
            if (status == -1 && PyErr_Occurred())
                return -1;
            if (status >= 0 && status <= 999)
                kind->wanted[status / 8] |= 1 << status % 8;
        }
        for (Py_ssize_t at = 0; at < PyList_GET_SIZE(payloads); at++)
            if (!PyBytes_Check(PyList_GET_ITEM(payloads, at))) {
                PyErr_SetString(PyExc_TypeError, "a payload is bytes");
                return -1;
            }
        if (PyList_GET_SIZE(payloads) == 0) {
            PyErr_SetString(PyExc_ValueError, "a kind without a payload");
            return -1;
        }
    }
    return 0;
}

static int set_marks(FastLanes *self, PyObject *marks) {
    self->marks = PyMem_Calloc(PyList_GET_SIZE(marks) + 1, sizeof(int64_t));
    if (self->marks == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(marks); at++) {
        self->marks[at] = PyLong_AsLongLong(PyList_GET_ITEM(marks, at));
        if (PyErr_Occurred())
            return -1;
    }
    self->mark_count = (int)PyList_GET_SIZE(marks);
    return 0;
}

static int init(FastLanes *self, PyObject *args, PyObject *Py_UNUSED(words)) {
    PyObject *kinds, *marks;
    const char *header_name;
    Py_ssize_t header_length;
    if (self->lanes != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "made twice");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "iO!O!y#", &self->size, &PyList_Type, &kinds, &PyList_Type, &marks,
                          &header_name, &header_length))
        return -1;
    if (self->size < 1 || header_length >= (Py_ssize_t)sizeof self->replica_header) {
        PyErr_SetString(PyExc_ValueError, "no lanes, or the name of a header is too long");
        return -1;
    }
    memcpy(self->replica_header, header_name, header_length);
    self->replica_header_length = header_length;
    self->lease = INT64_MAX;
    self->lanes = PyMem_Calloc(self->size, sizeof(Lane));
    self->parked = PyMem_Calloc(self->size + 1, sizeof(Parked));
    if (self->lanes == NULL || self->parked == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (int index = 0; index < self->size; index++)
        self->lanes[index].fd = COLD;
    self->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (self->epoll < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return set_kinds(self, kinds) < 0 || set_marks(self, marks) < 0 ? -1 : 0;
}

static PyObject *make(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(words)) {
    FastLanes *self = (FastLanes *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->epoll = -1;
    return (PyObject *)self;
}

static void dealloc(FastLanes *self) {
    let_go(self);
    for (int index = 0; index < self->kind_count; index++) {
        Py_XDECREF(self->kind[index].check);
        Py_XDECREF(self->kind[index].payloads);
    }
    for (size_t index = 0; index < self->group_count; index++)
        PyMem_Free(self->groups[index].rows);
    for (int index = 0; index < self->replica_count; index++)
        PyMem_Free(self->replicas[index]);
    PyMem_Free(self->groups);
    PyMem_Free(self->kind);
    PyMem_Free(self->marks);
    PyMem_Free(self->lanes);
    PyMem_Free(self->parked);
    if (self->epoll >= 0)
        close(self->epoll);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *get_has_free(FastLanes *self, void *Py_UNUSED(none)) {
    return PyBool_FromLong(has_free(self));
}

static PyMemberDef members[] = {
    {"fd", T_INT, offsetof(FastLanes, epoll), READONLY, "readable when a connection is"},
    {"origin_ns", T_LONGLONG, offsetof(FastLanes, origin_ns), 0, "t = 0 on CLOCK_MONOTONIC"},
    {"lease_us", T_LONGLONG, offsetof(FastLanes, lease), 0, "nothing is taken after it"},
    {"at", T_PYSSIZET, offsetof(FastLanes, at), READONLY, "position in the part at hand"},
    {"busy", T_INT, offsetof(FastLanes, busy), READONLY, "requests that are out"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"has_free", (getter)get_has_free, NULL, "whether any lane is free", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {
    {"turn", (PyCFunction)turn, METH_VARARGS,
     "turn(budget_us, spin_us) -> list: take what is due, read what came; see hand_over."},
    {"park", (PyCFunction)park, METH_VARARGS,
     "park(lane, fd, now_us): a lane is free; fd -1 = it has no connection to be used here."},
    {"take", (PyCFunction)take_now, METH_O,
     "take(now_us): an overdue arrival for a lane that has just become free, or None."},
    {"late", (PyCFunction)late, METH_O, "late(now_us) -> list: who has waited for too long."},
    {"all_busy", (PyCFunction)all_busy, METH_NOARGS, "all_busy() -> list: every request out."},
    {"load", (PyCFunction)load, METH_VARARGS,
     "load(first, intended, kinds, rows, slices, numbers): int64 columns; numbers may be None."},
    {"seek", (PyCFunction)seek, METH_O, "seek(at): go to a position in the part at hand."},
    {"know", (PyCFunction)know, METH_O,
     "know(replica) -> bool: a replica's name, numbered from 1 in order; False = not taken."},
    {"cut", (PyCFunction)cut, METH_NOARGS,
     "cut() -> [(slice, kind, crossed, who, count, rows)]: what ended since the last cut; "
     "who -1 = so many have expired, without rows."},
    {"second", (PyCFunction)second, METH_NOARGS,
     "second() -> (waited, idle_ns): since the last call."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "survive.load._fastlanes.FastLanes",
    .tp_basicsize = sizeof(FastLanes),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "FastLanes(lanes, kinds, marks, replica_header); see the head of its source.\n\n"
              "kinds: [(ordinary, patience_us, [status], check or None, [payload])].",
    .tp_new = make,
    .tp_init = (initproc)init,
    .tp_dealloc = (destructor)dealloc,
    .tp_methods = methods,
    .tp_members = members,
    .tp_getset = properties,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "survive.load._fastlanes", NULL, -1, NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__fastlanes(void) {
    PyObject *made = PyModule_Create(&module);
    if (made == NULL || PyType_Ready(&type) < 0 ||
        PyModule_AddObjectRef(made, "FastLanes", (PyObject *)&type) < 0) {
        Py_XDECREF(made);
        return NULL;
    }
    return made;
}
