/* SPDX-License-Identifier: 0BSD */
/*
 * net.c - pings, and answers pings, by a virtio network interface
 *
 * ip=A            our address (10.0.0.2)
 * ping=A          look for this one, and ping it
 * n=N             so many times (4)
 * size=N          bytes of data in each ping (56), up to the MTU less 28
 * udp=PORT        send the same as UDP, to who echoes it, and no pings
 * serve=N         answer the pings of others until so many were answered
 * link            wait until the link has gone down and is up again
 * announce        wait until we are asked to say where we are, and do so
 * own             receive what is for our address and for all, no more
 * merge           let a frame take several buffers
 * buffers=N       how many there are (16)
 * room=N          bytes of each (1530); 256 KiB in all
 * mode=poll|irq   how to wait for what comes (poll)
 */
#include <runtime.h>

#include <interrupt.h>
#include <net.h>

#define ETHERTYPE_IP  0x0800
#define ETHERTYPE_ARP 0x0806
#define ARP_REQUEST   1
#define ARP_REPLY     2
#define IP_ICMP       1
#define IP_UDP        17
#define ICMP_REPLY    0
#define ICMP_ECHO     8
#define IDENTIFIER    0x7079
#define UDP_FROM      4000

struct ethernet {
    unsigned char to[6], by[6];
    uint16_t type;
} __attribute__((packed));

struct arp {
    struct ethernet ethernet;
    uint16_t hardware, protocol;
    uint8_t hardware_size, protocol_size;
    uint16_t operation;
    unsigned char by[6];
    uint32_t by_ip;
    unsigned char to[6];
    uint32_t to_ip;
} __attribute__((packed));

struct ip {
    struct ethernet ethernet;
    uint8_t version, service;
    uint16_t length, identifier, fragment;
    uint8_t hops, protocol;
    uint16_t checksum;
    uint32_t by, to;
} __attribute__((packed));

struct ping {
    struct ip ip;
    uint8_t type, code;
    uint16_t checksum, identifier, number;
    unsigned char data[];
} __attribute__((packed));

struct udp {
    struct ip ip;
    uint16_t by, to, length, checksum;
    unsigned char data[];
} __attribute__((packed));

#define IP_SIZE   (sizeof(struct ip) - sizeof(struct ethernet))
#define DATA_MAX  (65535 - IP_SIZE - 8)
#define FOR_ALL   "\xff\xff\xff\xff\xff\xff"
#define ADDRESSES sizeof((struct ethernet *)0)->to

static struct net net;
static uint32_t our_ip; /* as on the wire */
static unsigned char in[NET_FRAME_MAX], out[NET_FRAME_MAX];
static unsigned char memory[256 * 1024]; /* buffers for what comes */

static int
fail(const char *why)
{
    print("net: %s\n", why);
    return 1;
}

static uint16_t
swap16(uint32_t value)
{
    return (uint16_t)(value >> 8 | value << 8);
}

/* An address in dots, as on the wire; false when it is none. */
static bool
parse_ip(const char *text, uint32_t *ip)
{
    unsigned char bytes[4] = {0};
    unsigned at = 0, digits = 0, value = 0;

    for (;; text++) {
        if (*text >= '0' && *text <= '9' && digits++ < 3) {
            value = value * 10 + (unsigned)(*text - '0');
        } else if (digits && value < 256 && at < 4 &&
                   (*text == '.' || *text == ' ' || *text == '\0')) {
            bytes[at++] = (unsigned char)value;
            value = digits = 0;
            if (*text != '.')
                break;
        } else {
            return false;
        }
    }
    memcpy(ip, bytes, 4);
    return at == 4;
}

static void
print_mac(const unsigned char *mac)
{
    print("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3],
          mac[4], mac[5]);
}

static void
print_ip(uint32_t ip)
{
    print("%u.%u.%u.%u", ip & 255, ip >> 8 & 255, ip >> 16 & 255, ip >> 24);
}

/* Of the internet protocols (RFC 1071). */
static uint16_t
checksum(const void *data, uint32_t len)
{
    const unsigned char *p = data;
    uint64_t sum = 0;
    uint16_t word;

    for (; len > 1; p += 2, len -= 2) {
        memcpy(&word, p, 2);
        sum += word;
    }
    if (len)
        sum += *p;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void
address(struct ethernet *frame, const void *to, uint16_t type)
{
    memcpy(frame->to, to, ADDRESSES);
    memcpy(frame->by, net.mac, ADDRESSES);
    frame->type = swap16(type);
}

static bool
send_arp(uint16_t operation, const void *to, uint32_t ip)
{
    struct arp *arp = (struct arp *)out;

    memset(out, 0, 60);
    address(&arp->ethernet, operation == ARP_REQUEST ? FOR_ALL : to,
            ETHERTYPE_ARP);
    arp->hardware = swap16(1);
    arp->protocol = swap16(ETHERTYPE_IP);
    arp->hardware_size = ADDRESSES;
    arp->protocol_size = 4;
    arp->operation = swap16(operation);
    memcpy(arp->by, net.mac, ADDRESSES);
    arp->by_ip = our_ip;
    if (operation == ARP_REPLY)
        memcpy(arp->to, to, ADDRESSES);
    arp->to_ip = ip;
    return net_send(&net, out, 60);
}

/* The headers of a packet to the one who is `ip` at `mac`; `len` is that of
 * what the protocol makes of it. */
static void
fill_ip(uint8_t protocol, const void *mac, uint32_t ip, uint32_t len)
{
    struct ip *head = (struct ip *)out;

    address(&head->ethernet, mac, ETHERTYPE_IP);
    head->version = 0x45;
    head->service = 0;
    head->length = swap16(IP_SIZE + len);
    head->identifier = 0;
    head->fragment = swap16(0x4000); /* not to be cut */
    head->hops = 64;
    head->protocol = protocol;
    head->checksum = 0;
    head->by = our_ip;
    head->to = ip;
    head->checksum = checksum(&head->version, IP_SIZE);
}

static bool
send_ping(uint8_t type, const void *mac, uint32_t ip, uint16_t identifier,
          uint16_t number, const void *data, uint32_t len)
{
    struct ping *ping = (struct ping *)out;

    fill_ip(IP_ICMP, mac, ip, 8 + len);
    ping->type = type;
    ping->code = 0;
    ping->checksum = 0;
    ping->identifier = identifier;
    ping->number = number;
    memcpy(ping->data, data, len);
    ping->checksum = checksum(&ping->type, 8 + len);
    return net_send(&net, out, sizeof *ping + len);
}

static bool
send_udp(uint16_t port, const void *mac, uint32_t ip, const void *data,
         uint32_t len)
{
    struct udp *udp = (struct udp *)out;

    fill_ip(IP_UDP, mac, ip, 8 + len);
    udp->by = swap16(UDP_FROM);
    udp->to = swap16(port);
    udp->length = swap16(8 + len);
    udp->checksum = 0; /* none: RFC 768 */
    memcpy(udp->data, data, len);
    return net_send(&net, out, sizeof *udp + len);
}

/* What came, if it is a whole packet of that protocol, for us; else NULL. The
 * length of what the protocol makes of it in *len. */
static struct ip *
is_ip(int size, uint8_t protocol, uint32_t *len)
{
    struct ip *ip = (struct ip *)in;

    if (size < (int)sizeof *ip || ip->ethernet.type != swap16(ETHERTYPE_IP) ||
        ip->version != 0x45 || ip->protocol != protocol || ip->to != our_ip ||
        checksum(&ip->version, IP_SIZE) != 0)
        return NULL;
    *len = swap16(ip->length);
    if (*len < IP_SIZE + 8 || *len > size - sizeof(struct ethernet))
        return NULL;
    *len -= IP_SIZE;
    return ip;
}

/* Answers what is a question; true when that was a ping. */
static bool
answer(int size)
{
    struct arp *arp = (struct arp *)in;
    struct ping *ping = (struct ping *)in;
    uint32_t len;

    if (size >= (int)sizeof *arp &&
        arp->ethernet.type == swap16(ETHERTYPE_ARP) &&
        arp->operation == swap16(ARP_REQUEST) && arp->to_ip == our_ip) {
        send_arp(ARP_REPLY, arp->by, arp->by_ip);
        return false;
    }
    if (!is_ip(size, IP_ICMP, &len) || ping->type != ICMP_ECHO ||
        checksum(&ping->type, len) != 0)
        return false;
    return send_ping(ICMP_REPLY, ping->ip.ethernet.by, ping->ip.by,
                     ping->identifier, ping->number, ping->data, len - 8);
}

static int
serve(unsigned n)
{
    unsigned served = 0;

    print("serving\n");
    while (served < n) {
        int size = net_wait(&net, in, sizeof in);

        if (size < 0)
            return fail("the device is broken");
        served += answer(size);
    }
    print("%u pings answered, %u interrupts\n", served, net.interrupts);
    return 0;
}

/* Finds out who has an address. */
static bool
find(uint32_t ip, unsigned char *mac)
{
    struct arp *arp = (struct arp *)in;
    int size;

    if (!send_arp(ARP_REQUEST, FOR_ALL, ip))
        return false;
    while ((size = net_wait(&net, in, sizeof in)) >= 0) {
        if (size >= (int)sizeof *arp &&
            arp->ethernet.type == swap16(ETHERTYPE_ARP) &&
            arp->operation == swap16(ARP_REPLY) && arp->by_ip == ip) {
            memcpy(mac, arp->by, ADDRESSES);
            return true;
        }
        answer(size);
    }
    return false;
}

/* Whether what came is the answer to ping `number`, or to a UDP packet. */
static bool
is_echo(int size, bool udp, uint16_t number, const unsigned char *data,
        uint32_t want)
{
    struct ping *ping = (struct ping *)in;
    uint32_t len;

    if (!is_ip(size, udp ? IP_UDP : IP_ICMP, &len) || len != 8 + want)
        return false;
    if (!udp && (ping->type != ICMP_REPLY || ping->number != number ||
                 checksum(&ping->type, len) != 0))
        return false;
    return memcmp(ping->data, data, want) == 0;
}

static int
ping(uint32_t ip, unsigned n, uint32_t size, unsigned port)
{
    static unsigned char data[DATA_MAX];
    unsigned char mac[ADDRESSES];
    int came;

    if (!find(ip, mac))
        return fail("the device is broken");
    print_ip(ip);
    print(" is at ");
    print_mac(mac);
    puts("");
    for (unsigned i = 0; i < n; i++) {
        for (uint32_t k = 0; k < size; k++)
            data[k] = (unsigned char)(i + k);
        if (!(port ? send_udp((uint16_t)port, mac, ip, data, size)
                   : send_ping(ICMP_ECHO, mac, ip, IDENTIFIER, (uint16_t)i,
                               data, size)))
            return fail("the device is broken");
        do {
            came = net_wait(&net, in, sizeof in);
            if (came < 0)
                return fail("a frame makes no sense");
            answer(came);
        } while (!is_echo(came, port != 0, (uint16_t)i, data, size));
    }
    print("%u of %u answers, %u bytes each, %u interrupts\n", n, n, size,
          net.interrupts);
    return 0;
}

/* Waits until these bits of the status have become as wanted. With interrupts
 * each change brings one, and is not looked at before that. */
static void
await(unsigned mask, unsigned want)
{
    static unsigned seen;

    do {
        while (net.receive.interrupts && net.changes == seen)
            irq_wait();
        seen = net.changes;
    } while ((net_status(&net) & mask) != want);
}

int
main(void)
{
    unsigned buffers = arg_number("buffers", 16), n = arg_number("n", 4);
    uint32_t size = arg_number("size", 56), room = arg_number("room", 1530);
    uint32_t other = 0;
    const char *mode = arg("mode"), *to = arg("ping");
    bool irq = mode && !strcmp(mode, "irq");
    uint64_t features = VIRTIO_NET_F_MTU;
    const char *problem;
    int status = 0;

    if (mode && !irq && strcmp(mode, "poll"))
        return fail("mode is poll or irq");
    if (!parse_ip(arg("ip") ? arg("ip") : "10.0.0.2", &our_ip) ||
        (to && !parse_ip(to, &other)))
        return fail("an address is four numbers with dots between");
    if (room == 0 || buffers > sizeof memory / room)
        return fail("that is more memory than there is for buffers");
    if (arg("merge"))
        features |= VIRTIO_NET_F_MRG_RXBUF;
    if (arg("own"))
        features |= VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_CTRL_RX;
    if (arg("announce"))
        features |= VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_GUEST_ANNOUNCE;
    problem = net_open(&net, features, memory, buffers, room, irq);
    if (problem)
        return fail(problem);
    if (size > net.mtu - IP_SIZE - 8 || size > DATA_MAX)
        return fail("pings of that size are longer than the MTU");

    print("net at 0x%08x, line %u: ", (unsigned)net.dev.base, net.dev.line);
    print_mac(net.mac);
    print(", mtu %u, link %s\n", net.mtu,
          net_status(&net) & VIRTIO_NET_S_LINK_UP ? "up" : "down");
    if (arg("own"))
        print("command: %d\n",
              net_command(&net, VIRTIO_NET_CTRL_RX, 0, "\0", 1));
    if (arg("link")) {
        await(VIRTIO_NET_S_LINK_UP, 0);
        puts("link down");
        await(VIRTIO_NET_S_LINK_UP, VIRTIO_NET_S_LINK_UP);
        print("link up, %u changes\n", net.changes);
    }
    if (arg("announce")) {
        await(VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_ANNOUNCE);
        send_arp(ARP_REQUEST, FOR_ALL, our_ip);
        print("announced: %d\n",
              net_command(&net, VIRTIO_NET_CTRL_ANNOUNCE, 0, "", 0));
    }
    if (to)
        status = ping(other, n, size, arg_number("udp", 0));
    if (!status && arg("serve"))
        status = serve(arg_number("serve", 1));
    return status;
}
