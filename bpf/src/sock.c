// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Services at the socket: connect and sendmsg go to a backend, recvmsg and getpeername say the
 * Service's address.
 */
#include "../include/kernel.h"
#include "../include/consts.h"
#include "../lib/maps_lb.h"
#include "../lib/sock.h"

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	return sock_forward4(ctx, 1);
}

SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	return sock_forward6(ctx, 1);
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sock_forward4(ctx, 0);
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sock_forward6(ctx, 0);
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	return sock_reverse4(ctx);
}

SEC("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	return sock_reverse6(ctx);
}

SEC("cgroup/getpeername4")
int sock_getpeername4(struct bpf_sock_addr *ctx)
{
	return sock_reverse4(ctx);
}

SEC("cgroup/getpeername6")
int sock_getpeername6(struct bpf_sock_addr *ctx)
{
	return sock_reverse6(ctx);
}

SEC("cgroup/post_bind4")
int sock_bind4(struct bpf_sock *ctx)
{
	return sock_bind(ctx, 0);
}

SEC("cgroup/post_bind6")
int sock_bind6(struct bpf_sock *ctx)
{
	return sock_bind(ctx, 1);
}

char _license[] SEC("license") = "Dual BSD/GPL";
